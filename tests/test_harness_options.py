"""What a person says to the harness: expected failures, claims, and the three lines in a test suite of one's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ia_core._cli import main
from ia_core.conformance._signature import signature_claims
from ia_core.conformance._xfails import read_xfails

KERNELS = """
from ia_core import indirect_attention
from ia_core.conformance import Implementation

def late_scale(query, key, value, *, scale=None, bias=None):
    return indirect_attention(query, key, value, scale=1.0 if scale is None else scale, bias=bias)

def good(query, key, value, *, scale=None, bias=None):
    return indirect_attention(query, key, value, scale=scale, bias=bias)

adapter = Implementation(late_scale, "adapted", supports={"scale"}, deviations={"IA-F-02": "scales late"})
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with a module of kernels in it."""
    (tmp_path / "kernels.py").write_text(KERNELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "kernels", raising=False)
    return tmp_path


def pytest_of_a_user(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)


# ------------------------------------------------------------------------------------------------ expected failures


def test_expected_failures(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "xfails").write_text(
        "# ours\n\nIA-F-02  scales late # see the tracker\nIA-F-10[float32] not judged in quick\n"
    )
    assert read_xfails("xfails") == {"IA-F-02": "scales late", "IA-F-10[float32]": "not judged in quick"}
    words = ["conform", "--clause", "IA-F-02", "--clause", "IA-F-10", "--xfails", "xfails"]
    assert main([*words, "kernels:late_scale"]) == 0
    assert "kernels:late_scale IA-F-02 in float64: scales late" in capsys.readouterr().out
    assert main([*words, "kernels:good"]) == 1
    assert "declared as a deviation (scales late), but it holds" in capsys.readouterr().out
    assert main([*words, "--profile", "full", "kernels:late_scale"]) == 1  # float32 has the right form
    assert "(not judged in quick), but it holds" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("IA-F-XX because", "line 1 of xfails must begin with the label of a clause; got IA-F-XX [IA-X-24]"),
        ("\n#\nIA-F-02", "line 3 of xfails must say why IA-F-02 fails [IA-X-24]"),
        ("IA-F-02 # because", "line 1 of xfails must say why IA-F-02 fails [IA-X-24]"),
        ("IA-F-02[float8] because", "must have one of float64, float32, float16, bfloat16 in brackets; got float8"),
        ("IA-F-02[] because", "in brackets; got  [IA-X-24]"),
        ("IA-F-02]x because", "line 1 of xfails must be a clause, perhaps a dtype in brackets, and a reason"),
        ("IA-F-02 a\nIA-F-02 b", "line 2 of xfails declares IA-F-02 a second time [IA-X-24]"),
        ("IA-F-02 a\nIA-F-02[float32] b", "line 2 of xfails declares IA-F-02[float32] a second time [IA-X-24]"),
        ("IA-F-02[float32] a\nIA-F-02 b", "line 2 of xfails declares IA-F-02 after one of its dtypes [IA-X-24]"),
        ("IA-F-02[float16] a", "names IA-F-02[float16], but kernels:good does not take float16 [IA-X-24]"),
        ("IA-F-06 a", "names IA-F-06, which kernels:good is not judged by: it does not claim mask [IA-X-24]"),
    ],
)
def test_a_file_of_expected_failures_that_makes_no_sense(
    folder: Path, capsys: pytest.CaptureFixture[str], text: str, error: str
) -> None:
    (folder / "xfails").write_text(text)
    assert main(["conform", "kernels:good", "--xfails", "xfails", "--clause", "IA-F-02"]) == 2
    assert error in capsys.readouterr().err


def test_expected_failures_belong_to_one_target(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "xfails").write_text("IA-F-02 scales late")
    assert main(["conform", "kernels:good", "kernels:late_scale", "--xfails", "xfails"]) == 2
    assert "`--xfails` needs one target, whose failures it lists; got 2 [IA-X-21]" in capsys.readouterr().err
    assert main(["conform", "kernels:adapter", "--xfails", "xfails"]) == 2
    assert "IA-F-02 of adapted is declared twice, also by its adapter [IA-X-21]" in capsys.readouterr().err
    assert main(["conform", "kernels:good", "--xfails", "nowhere"]) == 2
    assert "`--xfails nowhere` cannot be read" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------ claims


def only_bias(query: Any, key: Any, value: Any, bias: Any = None) -> Any: ...
def positional(query: Any, key: Any, value: Any, bias: Any = None, /, scale: Any = None) -> Any: ...
def everything(query: Any, key: Any, value: Any, **keywords: Any) -> Any: ...


def test_a_function_claims_what_its_signature_takes() -> None:
    unseen = {"grouped", "value_width", "batch_axes", "empty"}
    assert signature_claims(only_bias) == unseen | {"bias", "bias_broadcast"}
    assert signature_claims(positional) == unseen | {"scale"}
    assert signature_claims(everything) == unseen | {"bias", "bias_broadcast", "mask", "scale", "lse"}
    assert signature_claims(everything, "torch") >= {"grad", "bias_grad"}
    assert "bias_grad" not in signature_claims(positional, "jax")
    assert signature_claims(max) >= {"bias"}  # nobody can tell


def test_the_command_says_what_was_claimed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conform", "kernels:good", "--clause", "IA-F"]) == 0
    said = capsys.readouterr().out
    assert "kernels:good is judged by what its signature takes, as with --supports " in said
    assert "it has no argument mask, return_lse" in said and "2 not supported" not in said.splitlines()[0]
    assert "each implementation in a process of its own; limits: 120 s a clause and dtype" in said
    assert main(["conform", "kernels:good", "--clause", "IA-F-01", "--supports", "bias", "--in-process"]) == 0
    said = capsys.readouterr().out
    assert "signature" not in said and "all implementations in this process, without limits" in said


@pytest.mark.parametrize("words", [["--timeout", "0"], ["--memory", "-1"]])
def test_limits_that_make_no_sense(folder: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert main(["conform", "kernels:good", *words]) == 2
    assert f"`{words[0]}` must be above 0" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------ pytest


def test_three_lines_in_a_users_suite(folder: Path) -> None:
    (folder / "conftest.py").write_text('pytest_plugins = ["ia_core.conformance.plugin"]\n')
    (folder / "test_kernels.py").write_text(
        'from ia_core.conformance.suite import test_clause\nia_target = "kernels:late_scale"\n'
    )
    run = pytest_of_a_user(folder, "-q", "--ia-clause", "IA-F", "-k", "F-02 or F-06 or F-10", "-rA")
    assert run.returncode == 1, run.stdout + run.stderr
    assert "1 failed, 1 passed, 1 skipped" in run.stdout
    assert "FAILED test_kernels.py::test_clause[kernels:late_scale-IA-F-02-float64]" in run.stdout
    assert "times the bound" in run.stdout and "Traceback" not in run.stdout


def test_targets_of_the_ini_file_and_objects(folder: Path) -> None:
    (folder / "conftest.py").write_text('pytest_plugins = ["ia_core.conformance.plugin"]\n')
    (folder / "pytest.ini").write_text("[pytest]\nia_target = kernels:good\n")
    (folder / "test_all.py").write_text("from ia_core.conformance.suite import test_clause\n")
    (folder / "test_adapter.py").write_text(
        "from ia_core.conformance.suite import test_clause\nimport kernels\nia_target = [kernels.adapter]\n"
    )
    run = pytest_of_a_user(folder, "-q", "--ia-clause", "IA-F-02")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "1 passed, 1 xfailed" in run.stdout


def test_wrong_targets_in_a_users_suite(folder: Path) -> None:
    words = ["-p", "ia_core.conformance.plugin", "--pyargs", "ia_core.conformance.suite"]
    run = pytest_of_a_user(folder, *words, "--ia-target", "nowhere:f")
    assert run.returncode == 4 and "`nowhere:f` does not import" in run.stderr and "Traceback" not in run.stderr


def test_pytest_does_not_load_the_suite_unasked(tmp_path: Path) -> None:
    """The package has no entry point for pytest: nobody pays for a plugin that they did not ask for."""
    code = "import pytest, sys; pytest.main(['-q']); print(sorted(m for m in sys.modules if m.startswith('ia_core')))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert "no tests ran" in run.stdout and run.stdout.splitlines()[-1] == "[]"
