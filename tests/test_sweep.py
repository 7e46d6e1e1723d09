"""Sweeps: the same results whatever the workers, and whatever dies on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ia_core._cli import main
from ia_core._sweep import Unit, UnitError, code_digest, sweep

ROOT = Path(__file__).parents[1]
UNITS = "tests.sweep_units"
slow = pytest.mark.slow


def squares(count: int, log: Path, function: str = "square") -> list[Unit]:
    return [Unit(f"{UNITS}:{function}", {"number": n, "log": str(log)}) for n in range(count)]


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def test_results_have_the_order_of_the_units_and_equal_ones_run_once(tmp_path: Path) -> None:
    units = squares(5, tmp_path / "log")
    wanted = [{"square": n * n / 3} for n in range(5)]
    told: list[Unit] = []
    assert sweep([*units, units[2]], workers=3, tell=lambda unit, _: told.append(unit)) == [*wanted, wanted[2]]
    assert sorted(lines(tmp_path / "log")) == list("01234") and len(told) == 5


def test_what_is_kept_is_not_run_again(tmp_path: Path) -> None:
    units, keep = squares(3, tmp_path / "log"), tmp_path / "keep"
    first = sweep(units, keep=keep)
    (keep / f"{units[1].key}.json").write_text('{"unit": [', encoding="utf-8")  # half a file
    other = json.loads((keep / f"{units[0].key}.json").read_text(encoding="utf-8"))
    (keep / f"{units[2].key}.json").write_text(json.dumps(other), encoding="utf-8")  # of another unit
    assert sweep(units, keep=keep) == first
    assert sorted(lines(tmp_path / "log")) == sorted("012" + "12")
    changed = [unit._replace(content="other code") for unit in units]
    assert sweep(changed, keep=keep) == first and len(lines(tmp_path / "log")) == 8
    assert all(path.suffix == ".json" and not path.name.startswith(".") for path in keep.iterdir())


def test_a_unit_whose_process_dies_is_tried_again(tmp_path: Path) -> None:
    units = [Unit(f"{UNITS}:dies_at_first", {"number": n, "folder": str(tmp_path)}) for n in range(2)]
    assert sweep(units, workers=2) == [0.1, 1.1]


def test_a_unit_that_always_dies_or_raises_is_an_error(tmp_path: Path) -> None:
    dying = Unit(f"{UNITS}:dies_at_first", {"number": 7, "folder": str(tmp_path), "times": 9})
    with pytest.raises(UnitError, match=r"dies_at_first.* ended its process 3 times, exit status \[-9, -9, -9\]"):
        sweep([dying, *squares(2, tmp_path / "log")])
    with pytest.raises(UnitError, match=r"raised TypeError: can't multiply"):
        sweep([Unit(f"{UNITS}:square", {"number": "two"})])
    with pytest.raises(ValueError, match=r"`workers` must be at least 1; got 0 \[IA-X-26\]"):
        sweep([], workers=0)


def test_code_digest_sees_other_code(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("one", encoding="utf-8")
    before = code_digest(tmp_path)
    (tmp_path / "a.py").write_text("two", encoding="utf-8")
    assert before != code_digest(tmp_path) and code_digest() == code_digest()


def verdicts(path: Path) -> Any:
    """A report without what depends on when it was made."""
    data = json.loads(path.read_text(encoding="utf-8"))

    def timeless(part: Any) -> Any:
        if isinstance(part, dict):
            return {name: timeless(value) for name, value in part.items() if name not in ("seconds", "date")}
        return [timeless(one) for one in part] if isinstance(part, list) else part

    return timeless(data)


def test_conform_says_the_same_with_workers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["conform", "reference-numpy", "--clause", "IA-F-01", "--clause", "IA-X-13"]
    files = [tmp_path / f"{n}.json" for n in range(3)]
    keep = ["--keep", str(tmp_path / "keep")]
    assert main([*words, "--json", str(files[0])]) == 0
    assert main([*words, "--json", str(files[1]), "--workers", "2", *keep]) == 0
    assert len(list((tmp_path / "keep").glob("*.json"))) == 2
    assert main([*words, "--json", str(files[2]), *keep]) == 0
    assert verdicts(files[0]) == verdicts(files[1]) == verdicts(files[2])
    capsys.readouterr()
    assert main([*words, "--workers", "2", "--in-process"]) == 2
    assert main([*words, "--workers", "0"]) == 2
    assert capsys.readouterr().err.count("[IA-X-26]") == 2


def test_a_target_in_the_current_folder_is_judged_anew_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    keep = tmp_path / "keep"
    words = ["conform", "kernel_of_a_sweep:attention", "--clause", "IA-F-01", "--workers", "1", "--keep", str(keep)]
    text = "from ia_core import indirect_attention as right\n\n"
    text += "def attention(query, key, value, *, bias=None):\n    return "
    for factor, status in (("2 * ", 1), ("", 0)):
        Path("kernel_of_a_sweep.py").write_text(
            f"{text}{factor}right(query, key, value, bias=bias)\n", encoding="utf-8"
        )
        assert main(words) == status
    assert len(list(keep.glob("*.json"))) == 2


@pytest.mark.parametrize("command", [["conform", "reference-numpy"], ["noise"]])
def test_dask_is_asked_for_where_it_is_not_installed(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.delitem(sys.modules, "ia_core.backends._dask_sweep", raising=False)
    assert main([*command, "--dask", "tcp://localhost:1"]) == 2
    assert "pip install 'indirect-attention[dask]'" in capsys.readouterr().err


def test_noise_says_the_same_with_workers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["noise", "--dim", "4", "--tokens", "4", "--simulate", "0.2"]
    said = []
    for more in ([], ["--workers", "2", "--keep", str(tmp_path)], ["--keep", str(tmp_path)]):
        assert main([*words, *more]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] == said[2]


def test_a_child_whose_run_is_gone_ends_quietly() -> None:
    words = [sys.executable, "-c", "from ia_core._sweep import _serve; _serve()"]
    child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdin is not None and child.stdout is not None and child.stderr is not None
    child.stdout.close()
    child.stdin.write('["builtins:dict", {}]\n')
    child.stdin.flush()
    assert child.wait(timeout=60) == 0 and child.stderr.read() == ""


RUN = f"""
import json, sys
from ia_core._sweep import Unit, sweep
units = [Unit("{UNITS}:slow_square", {{"number": n, "log": sys.argv[2]}}) for n in range(12)]
print(json.dumps(sweep(units, workers=2, keep=sys.argv[1])))
"""


@slow
def test_a_sweep_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    keep, log = tmp_path / "keep", tmp_path / "log"
    command = [sys.executable, "-c", RUN, str(keep), str(log)]
    run = subprocess.Popen(command, cwd=ROOT)
    deadline = time.monotonic() + 60
    while len(list(keep.glob("*.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    kept = len(list(keep.glob("*.json")))
    assert 3 <= kept < 12
    time.sleep(1)  # its processes end by themselves when nobody asks them any more
    before = len(lines(log))
    resumed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    undisturbed = subprocess.run(
        [*command[:3], str(tmp_path / "other"), str(tmp_path / "log2")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert resumed.stdout == undisturbed.stdout  # to the last bit
    assert len(lines(log)) - before == 12 - kept


@slow
def test_a_conformance_run_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    keep = tmp_path / "keep"
    command = [sys.executable, "-m", "ia_core._cli", "conform", "reference-numpy", "--clause", "IA-F", "--workers", "2"]
    run = subprocess.Popen([*command, "--keep", str(keep)], cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(keep.glob("*.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in keep.glob("*.json")}
    assert 3 <= len(kept) < 16
    for name, words in (("a", ["--keep", str(keep)]), ("b", [])):
        subprocess.run(
            [*command, *words, "--json", str(tmp_path / name)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
        )
    assert {path.name: path.stat().st_mtime_ns for path in keep.glob("*.json")}.items() >= kept.items()
    assert verdicts(tmp_path / "a") == verdicts(tmp_path / "b")
