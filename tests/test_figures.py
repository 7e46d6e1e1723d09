"""The figure of the noise theory and its records: the script takes other sizes, what is committed keeps promises."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from ia_core import noise

ROOT = Path(__file__).parents[1]
DATA = ROOT / "docs/results/thresholds.json"


def test_one_panel_with_other_sizes() -> None:
    words = ["--panel", "c", "--dim", "2", "8", "--n", "4", "--shift", "2"]
    ended = subprocess.run(
        [sys.executable, str(ROOT / "docs/figures/thresholds.py"), *words], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    facts = json.loads((ROOT / "build/thresholds.json").read_text())
    rows = facts["rows"]
    assert facts["seconds"] > 0
    assert {(row["panel"], row["d"], row["shift"]) for row in rows} == {("c", 2, 2.0), ("c", 8, 2.0)}
    one_hot = [row["theory"] for row in rows if row["weights"] == "one-hot"]
    assert one_hot == [2 * d + 4 * d for d in (2, 8)] == [row["paper"] for row in rows if row["weights"] == "one-hot"]
    assert (ROOT / "build/thresholds.svg").stat().st_size > 1000
    assert "standard errors off" in ended.stdout


@pytest.mark.parametrize("letter", "abcd")
def test_a_cell_by_itself(letter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an editor runs it: the first cell with a number changed, then a panel's, which shows it."""
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = []
    monkeypatch.setattr(pyplot, "show", lambda: shown.append([axes.get_title() for axes in pyplot.gcf().axes]))
    cells = re.split(r"^# %%", (ROOT / "docs/figures/thresholds.py").read_text(encoding="utf-8"), flags=re.MULTILINE)
    first, panel = cells[1].replace("WIDTHS = (4, 16, 64, 256)", "WIDTHS = (2, 8)"), cells["abcd".index(letter) + 2]
    assert first != cells[1] and f" ({letter}) " in panel
    here = {"__name__": "__main__"}
    for cell in (first, panel, cells[-1]):
        exec(compile("#" + cell, "cell", "exec"), here)
        here |= {"panel_a": None, "panel_b": None, "panel_c": None, "panel_d": None} | here
    pyplot.close("all")
    assert len(shown) == 1 and shown[0][0].startswith(f"({letter})")


def test_committed_data_say_how_long_they_took_and_where() -> None:
    """docs/noise.md promises less than two minutes."""
    facts = json.loads(DATA.read_text())
    assert 0 < facts["seconds"] < 120
    assert {"system", "processor", "cpus"} == set(facts["machine"])
    assert {"python", "numpy", "matplotlib"} == set(facts["versions"])


def test_committed_data_agree_with_the_closed_forms() -> None:
    """72 dots with one seed: none is off by more than 5 standard errors, as 1 in 20,000 such figures would have one."""
    rows = json.loads(DATA.read_text())["rows"]
    assert {row["panel"] for row in rows} == set("abcd") and len(rows) == 72
    for row in rows:
        error = (row["high"] - row["low"]) / 3.92
        assert abs(row["mean"] - row["theory"]) <= 5 * error + 1e-12, row
        if row["panel"] == "a":
            assert np.isclose(row["theory"], 1 / row["sigma"] ** 2)
        if row["panel"] == "d":
            wanted = 1 + row["n_eff"] * row["mean_of_tokens"] ** 2
            assert np.isclose(row["theory"], wanted)
        if row["panel"] in "bc":
            a = np.eye(64)[0] if row.get("weights") == "one-hot" else np.full(64, 1 / 64)
            means = {"mean_x": np.zeros(row["d"]), "mean_y": np.full(row["d"], row["shift"])}
            paper = noise.misalignment_energy(a, **means, form="paper")
            assert np.isclose(row["paper"], paper if row["panel"] == "c" else 1 / paper)


def test_the_record_of_times_keeps_its_promise() -> None:
    """docs/noise.md promises at most 1.3 times the plain operations, in every library."""
    record = json.loads((ROOT / "docs/results/simulate_times.json").read_text(encoding="utf-8"))
    results = record["results"]
    assert {name.partition(",")[0] for name in results} == {"numpy", "torch", "jax"} and len(results) >= 100
    for name, found in results.items():
        ratios = [
            ours / plain for plain, ours in zip(found["seconds"]["plain"], found["seconds"]["simulate"], strict=True)
        ]
        assert len(ratios) >= 7 and statistics.median(ratios) <= 1.3, name
