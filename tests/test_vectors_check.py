"""`ia-core vectors`: verdicts on what another program wrote, and one such program, in C."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ia_core._cli import main
from ia_core.conformance._safetensors import save
from ia_core.conformance._vectors_check import check
from ia_core.conformance._vectors_index import GOLDEN, read

from .vector_answers import answers

SOURCE = Path(__file__).parent / "vectors_check.c"
ONE, WITH_LSE = "IA-F-01/float32/000", "IA-F-08/float16/000"


@pytest.fixture(scope="module")
def golden() -> Any:
    return read(GOLDEN)


@pytest.fixture(scope="module")
def results(golden: Any) -> dict[str, np.ndarray]:
    return answers(golden)


def outcome_of(name: str, folder: Path, golden: Any) -> Any:
    (found,) = [outcome for outcome in check(folder, golden) if outcome.id == name]
    return found


def test_results_in_any_number_of_files(results: dict[str, np.ndarray], golden: Any, tmp_path: Path) -> None:
    names = sorted(results)
    save(tmp_path / "a.safetensors", {name: results[name] for name in names[::2]})
    save(tmp_path / "b.safetensors", {name: results[name] for name in names[1::2]})
    (tmp_path / "notes.md").write_text("is not read")
    outcomes = check(tmp_path, golden)
    assert {outcome.outcome for outcome in outcomes} == {"pass"} and len(outcomes) == len(golden.entries)
    worst = max(outcome.worst for outcome in outcomes)
    assert 0.0 < worst <= 1.0


def test_a_result_at_its_tolerance_passes_and_beyond_it_fails(golden: Any, tmp_path: Path) -> None:
    name = "IA-F-01/float64/000"
    wanted, bound = golden.arrays[f"{name}/output"], golden.arrays[f"{name}/bound/output"]
    at = (0, 1, 2, 3)
    step = np.spacing(abs(wanted[at]))  # the bound is a few steps of float64: the last one within it, the first beyond
    within = np.floor(bound[at] / step) * step
    for off, outcome in ((within, "pass"), (within + step, "fail"), (np.inf, "fail"), (np.nan, "fail")):
        moved = wanted.copy()
        moved[at] += off
        save(tmp_path / "results.safetensors", {f"{name}/output": moved})
        found = outcome_of(name, tmp_path, golden)
        assert found.outcome == outcome
        if np.isfinite(off):
            assert found.worst == pytest.approx(off / bound[at])
        if outcome == "fail":
            assert found.reason.startswith("output[0, 1, 2, 3] is ") and found.worst > 1


def test_special_values_must_be_the_same(golden: Any, tmp_path: Path) -> None:
    for name in ("IA-S-07/float32/001", "IA-S-14/float32/000", "IA-S-01/float32/000"):
        wanted = golden.arrays[f"{name}/output"]
        save(tmp_path / "results.safetensors", {f"{name}/output": wanted})
        assert outcome_of(name, tmp_path, golden).outcome == "pass"
        changed = np.nan_to_num(wanted, nan=0.0, posinf=1e30, neginf=-1e30)
        if name.startswith("IA-S-01"):
            changed = np.where(wanted == 0, np.float32(1e-38), wanted)  # a row of nothing is exactly 0
        save(tmp_path / "results.safetensors", {f"{name}/output": changed})
        assert outcome_of(name, tmp_path, golden).outcome == "fail"


def test_form_is_judged_before_numbers(golden: Any, tmp_path: Path) -> None:
    wanted = golden.arrays[f"{ONE}/output"]
    for wrong, text in (
        (wanted.astype(np.float64), "output must be float32 of shape (1, 2, 3, 4); got float64 of shape (1, 2, 3, 4)"),
        (wanted[0], "output must be float32 of shape (1, 2, 3, 4); got float32 of shape (2, 3, 4)"),
    ):
        save(tmp_path / "results.safetensors", {f"{ONE}/output": wrong})
        found = outcome_of(ONE, tmp_path, golden)
        assert (found.outcome, found.reason) == ("fail", text)


def test_missing_and_not_supported(golden: Any, results: dict[str, np.ndarray], tmp_path: Path) -> None:
    assert {outcome.outcome for outcome in check(tmp_path, golden)} == {"missing"}
    save(tmp_path / "results.safetensors", {f"{WITH_LSE}/output": results[f"{WITH_LSE}/output"]})
    assert outcome_of(WITH_LSE, tmp_path, golden).reason == "there is no lse"
    some = {name: array for name, array in results.items() if "/float64/" in name and "IA-G" not in name}
    save(tmp_path / "results.safetensors", some)
    (tmp_path / "not-supported.txt").write_text(
        "# ours is for float64\ndtype:float32 no single\n\ndtype:float16 no half\ndtype:bfloat16 no half\n"
        "IA-G- no gradients, and a reason\n"
    )
    counts: dict[str, int] = {}
    for outcome in check(tmp_path, golden):
        counts[outcome.outcome] = counts.get(outcome.outcome, 0) + 1
    assert set(counts) == {"pass", "not supported"} and counts["pass"] > 100
    assert outcome_of("IA-G-01/float64/000", tmp_path, golden).reason == "no gradients, and a reason"


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("flag:grad", "and a reason"),
        ("flag:gradient no", "that occurs"),
        ("IA-Q no", "that occurs"),
        ("IA-F-01/float32/000 no", "IA-F-01/float32/000 is listed, but there are results"),
    ],
)
def test_a_strange_list_is_refused(text: str, rule: str, golden: Any, tmp_path: Path) -> None:
    save(tmp_path / "results.safetensors", {f"{ONE}/output": golden.arrays[f"{ONE}/output"]})
    (tmp_path / "not-supported.txt").write_text(text)
    with pytest.raises(ValueError, match=rf"^not-supported\.txt: .*{rule}.*\[IA-X-24\]$"):
        check(tmp_path, golden)


def test_strange_results_are_refused(golden: Any, tmp_path: Path) -> None:
    array = golden.arrays[f"{ONE}/output"]
    for name in ("IA-F-01/float32/999/output", f"{ONE}/lse", f"{ONE}/bound/output", "output"):
        save(tmp_path / "results.safetensors", {name: array})
        with pytest.raises(ValueError, match=r"is no result that the set asks for \[IA-X-24\]$"):
            check(tmp_path, golden)
    for name in ("results", "twice"):
        save(tmp_path / f"{name}.safetensors", {f"{ONE}/output": array})
    with pytest.raises(ValueError, match=r"twice\.safetensors: .* is in another file too \[IA-X-24\]$"):
        check(tmp_path, golden)
    with pytest.raises(ValueError, match="must be a folder of results"):
        check(tmp_path / "nowhere", golden)


# The command.


def test_the_command_checks(results: dict[str, np.ndarray], tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "r").mkdir()
    save(tmp_path / "r" / "results.safetensors", results)
    assert main(["vectors", "check", str(tmp_path / "r"), "--json", str(tmp_path / "verdicts.json")]) == 0
    shown = capsys.readouterr().out
    assert "IA-F-02" in shown and f"{len(read(GOLDEN).entries)} pass, 0 fail, 0 missing, 0 not supported" in shown
    written = json.loads((tmp_path / "verdicts.json").read_text())
    assert written["outcomes"] == {"pass": len(read(GOLDEN).entries)}
    save(tmp_path / "r" / "results.safetensors", {name: np.zeros_like(array) for name, array in results.items()})
    assert main(["vectors", "check", str(tmp_path / "r"), "--vectors", str(GOLDEN)]) == 1
    shown = capsys.readouterr().out
    assert "fail     IA-B-01/float32/000: output[" in shown and "more (--all shows them)" in shown
    (tmp_path / "r" / "results.safetensors").write_bytes(b"{}")
    assert main(["vectors", "check", str(tmp_path / "r")]) == 2
    assert "results.safetensors: must begin with 8 bytes" in capsys.readouterr().err


def test_nothing_compared_is_no_success(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "not-supported.txt").write_text("IA- nothing at all\n")
    assert main(["vectors", "check", str(tmp_path)]) == 1
    assert "nothing was compared" in capsys.readouterr().err


def test_the_command_exports_and_verifies(tmp_path: Path, capsys: Any) -> None:
    assert main(["vectors", "verify"]) == 0
    assert "is whole: " in capsys.readouterr().out
    (tmp_path / "else").write_text("")
    assert main(["vectors", "export", str(tmp_path)]) == 2
    assert "`DIR` must be empty or hold a set of vectors" in capsys.readouterr().err
    (tmp_path / "else").unlink()
    assert main(["vectors", "export", str(tmp_path)]) == 0
    assert main(["vectors", "verify", str(tmp_path)]) == 0
    (tmp_path / "index.json").write_bytes((tmp_path / "index.json").read_bytes().replace(b"wider", b"wiper"))
    assert main(["vectors", "verify", str(tmp_path)]) == 2
    assert "a file was changed [IA-X-24]" in capsys.readouterr().err


# A program in C, with what docs/vectors.md says and nothing of ours.


def compiled(folder: Path, *options: str) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("there is no C compiler (cc, gcc or clang)")
    program = folder / "vectors_check"
    command = [compiler, "-std=c11", "-O2", "-Wall", "-Wextra", *options, "-o", str(program), str(SOURCE), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and any(option.startswith("-fsanitize") for option in options):
        pytest.skip(f"{compiler} has no sanitizers here: {done.stderr.strip().splitlines()[-1]}")
    assert (done.returncode, done.stderr) == (0, "")
    return program


@pytest.mark.parametrize(("options", "status"), [((), 0), (("-DWRONG_SCALE",), 1)], ids=["right", "wrong scale"])
def test_a_program_in_c(options: tuple[str, ...], status: int, tmp_path: Path, capsys: Any) -> None:
    program = compiled(tmp_path, *options)
    (tmp_path / "r").mkdir()
    subprocess.run([program, GOLDEN, tmp_path / "r"], check=True)
    assert main(["vectors", "check", str(tmp_path / "r")]) == status
    shown = capsys.readouterr().out
    assert ("fail     IA-F-02/" in shown or "fail     IA-B-01/" in shown) == bool(options)


def test_the_program_in_c_does_not_read_astray(tmp_path: Path) -> None:
    program = compiled(tmp_path, "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover")
    done = subprocess.run([program, GOLDEN, tmp_path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    (tmp_path / "vectors.safetensors").write_bytes((9).to_bytes(8, "little") + b'{"a":{"b"')
    done = subprocess.run([program, tmp_path, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("vectors_check: ")
