"""The command ``ia-core conform``: targets, options, reports, exit status."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ia_core import indirect_attention
from ia_core._cli import main
from ia_core.conformance import CLAUSES, Failure, Implementation, judge
from ia_core.conformance._case import Case
from ia_core.conformance._targets import Options, resolve, select_clauses

KERNELS = """
import numpy as np
from ia_core import indirect_attention
from ia_core.conformance import Implementation

def good(query, key, value, **keywords):
    return indirect_attention(query, key, value, **keywords)

def late_scale(query, key, value, *, scale=None, **keywords):
    return indirect_attention(query, key, value, scale=1.0 if scale is None else scale, **keywords)

def torch_only(query, key, value, **keywords):
    query.requires_grad  # numpy has none
    return indirect_attention(query, key, value, **keywords)

def bmhd(query, key, value, **keywords):
    swap = lambda a: a.swapaxes(-3, -2)
    return swap(indirect_attention(swap(query), swap(key), swap(value), **keywords))

plain = {"bias", "mask", "scale"}
adapter = Implementation(good, "mine", supports=plain)
declared = Implementation(late_scale, "declared", supports=plain, deviations={"IA-F-02": "scales late"})
wrongly_declared = Implementation(good, "wrongly", supports=plain, deviations={"IA-F-02": "scales late"})
unknown = Implementation(good, "unknown", deviations={"no-such-clause": "no such clause"})
number = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with a module of kernels in it."""
    (tmp_path / "kernels.py").write_text(KERNELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "kernels", raising=False)
    return tmp_path


def conform(*words: str) -> int:
    return main(["conform", *words])


def test_a_good_function_passes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert conform("kernels:good", "--clause", "IA-F") == 0
    assert f"{len(select_clauses(['IA-F']))} pass" in capsys.readouterr().out


def test_a_wrong_function_is_convicted_and_the_command_repeats_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert conform("kernels:late_scale", "--clause", "IA-F", "--seed", "5") == 1
    said = capsys.readouterr().out
    assert "IA-F-02 the default scale is 1 / sqrt(D)" in said
    assert "times the bound" in said and "Case(float64, query" in said
    repeat = next(line.split("repeat with: ia-core ")[1] for line in said.splitlines() if "repeat with" in line)
    assert main(repeat.split()) == 1
    again = capsys.readouterr().out
    worst = next(line for line in said.splitlines() if "times the bound" in line)
    assert worst in again


def test_adapters_and_declared_deviations(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert conform("kernels:adapter", "kernels:declared", "--clause", "IA-F-02", "--clause", "IA-F-03") == 0
    assert "declared IA-F-02 in float64: scales late" in capsys.readouterr().out
    assert conform("kernels:wrongly_declared", "--clause", "IA-F-02") == 1
    assert "declared as a deviation (scales late), but it holds" in capsys.readouterr().out


def test_layout_library_and_supports(folder: Path) -> None:
    assert conform("kernels:bmhd", "--layout", "BMHD", "--clause", "IA-F-01", "--supports", "bias,mask,scale") == 0
    pytest.importorskip("torch")
    assert conform("kernels:torch_only", "--library", "torch", "--clause", "IA-F-01", "--dtypes", "float32") == 0
    assert conform("kernels:torch_only", "--clause", "IA-F-01") == 1


def test_reports(folder: Path) -> None:
    names = {"--html": "out/report.html", "--json": "out/report.json", "--junit": "out/report.xml"}
    words = [word for pair in names.items() for word in pair]
    assert conform("kernels:late_scale", "--clause", "IA-F", *words) == 1
    page = (folder / "out/report.html").read_text()
    assert "IA-F-02" in page and "kernels:late_scale" in page
    assert "<script" not in page and "://" not in page
    data = json.loads((folder / "out/report.json").read_text())
    assert data["complete"] and data["seed"] == 0 and data["versions"]["numpy"] == np.__version__
    failed = [v for v in data["verdicts"] if v["outcome"] == "fail"]
    assert {v["clause"] for v in failed} >= {"IA-F-02"}
    assert failed[0]["details"]["error_in_bounds"] > 1
    suite = ET.parse(folder / "out/report.xml").getroot().find("testsuite")
    assert int(suite.get("tests")) == len(select_clauses(["IA-F"])) and int(suite.get("failures")) == len(failed)
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["report.html", "report.json", "report.xml"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["nowhere:f"], "`nowhere:f` does not import: ModuleNotFoundError"),
        (["kernels:nothing"], "`kernels:nothing`: module kernels has no nothing [IA-X-21]"),
        (["kernels:number"], "`kernels:number` must be callable, or an Implementation; got int [IA-X-21]"),
        (["kernel"], "`kernel` is neither module:function nor one of: "),
        (["kernels:unknown"], "`deviations` must name clauses of docs/spec.md; got no-such-clause [IA-X-21]"),
        (["kernels:good", "--library", "tensorflow"], "`library` must be of numpy, torch, jax"),
        (["kernels:good", "--layout", "BDHM"], "`layout` must be of BHMD, BMHD; got BDHM [IA-X-21]"),
        (["kernels:good", "--dtypes", "float8"], "`dtypes` must be of float64"),
        (["kernels:good", "--supports", "magic"], "`supports` must be of"),
        (["kernels:good", "--device", "cuda"], "must be cpu: it takes numpy arrays; got cuda [IA-X-21]"),
        (["torch-sdpa", "--device", "nowhere"], "torch-sdpa needs torch on nowhere, not to be had here: "),
        (["kernels:good", "--clause", "IA-Z"], "`--clause` must start the label of a clause"),
    ],
)
def test_bad_calls(folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], text: str) -> None:
    assert conform(*words) == 2
    assert text in capsys.readouterr().err


def wrong_shape(query: Any, key: Any, value: Any, **keywords: Any) -> Any:
    return indirect_attention(query, key, value, **keywords)[..., :1, :1, :]


@pytest.mark.parametrize(
    ("fn", "text"),
    [
        (lambda q, k, v, **kw: None, "its output must be an array of shape"),
        (lambda q, k, v, **kw: 1.0, "its output must be an array of shape"),
        (lambda q, k, v, **kw: np.zeros((7, 7)), "its output must have shape"),
        (lambda q, k, v, **kw: indirect_attention(q, k, v, **kw).astype(np.float32), "the output must be float64"),
        (lambda q, k, v, **kw: 1 / 0, "it raised ZeroDivisionError: division by zero"),
        (lambda q, k, v, **kw: sys.exit(3), "it raised SystemExit: 3"),
        (lambda q, k: q, "it raised TypeError"),
    ],
)
def test_bad_implementations_get_a_verdict(fn: Any, text: str) -> None:
    verdict = judge(Implementation(fn, "bad"), CLAUSES["IA-F-10"])
    assert verdict.outcome == "fail" and text in verdict.reason


def test_lse_that_is_no_pair() -> None:
    case = Case(*(np.ones((1, 1, 1)) for _ in range(3)))
    with pytest.raises(Failure, match="must give a pair"):
        Implementation(lambda q, k, v, return_lse: q, "bad").run(case, return_lse=True)


def test_implementations_that_make_no_sense() -> None:
    with pytest.raises(TypeError, match=r"`fn` must be callable; got int \[IA-X-21\]"):
        Implementation(3, "three")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`supports` must be of.*got telepathy \[IA-X-21\]"):
        Implementation(indirect_attention, "x", supports={"telepathy"})


def test_the_same_seed_draws_the_same_cases() -> None:
    late = Implementation(lambda q, k, v, **kw: indirect_attention(q, k, v, scale=1.0), "late")
    one, two, other = (judge(late, CLAUSES["IA-F-02"], seed=s) for s in (1, 1, 2))
    assert (one.case, one.details) == (two.case, two.details)
    assert one.outcome == other.outcome == "fail"


def test_resolve_keeps_what_an_adapter_says(folder: Path) -> None:
    found = resolve("kernels:adapter", Options(device="cpu"))
    assert (found.name, found.device, found.target) == ("mine", "cpu", "kernels:adapter")
    assert select_clauses(["IA-G", "IA-F-01"])[0].label == "IA-F-01"


def test_pytest_plugin_in_a_users_suite(folder: Path) -> None:
    """Three words on pytest's own command line."""
    words = ["-p", "ia_core.conformance.plugin", "--ia-target", "kernels:late_scale", "--ia-clause", "IA-F"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *words, "--pyargs", "ia_core.conformance.suite"],
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
    )
    assert run.returncode == 1, run.stdout + run.stderr
    assert "IA-F-02 the default scale is 1 / sqrt(D)" in run.stdout and "repeat with: ia-core" in run.stdout


def test_a_users_pytest_setup_takes_no_part(folder: Path) -> None:
    (folder / "conftest.py").write_text("raise RuntimeError('not yours')")
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    run = subprocess.run(
        [sys.executable, "-m", "ia_core._cli", "conform", "kernels:good", "--clause", "IA-F-01"],
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    said = capsys.readouterr().out
    assert f"numpy              {np.__version__}" in said and "fast paths" in said


def test_nothing_installed_is_said_in_words(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "flint" else real(name, *a))
    assert conform("reference-numpy") == 2
    assert "needs flint; install the extra" in capsys.readouterr().err
