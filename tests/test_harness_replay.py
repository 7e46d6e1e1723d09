"""Saved cases: repeated bit for bit, by the command and by a script of their own; files that are none are refused."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ia_core
from ia_core import Grid, OffsetMLP, PositionBias
from ia_core._cli import main
from ia_core.conformance import CLAUSES, Case, Failure, Implementation, Verdict
from ia_core.conformance._libraries import numpy_dtype
from ia_core.conformance._safetensors import load, saves
from ia_core.conformance._saved import read_case, save_failure

KERNELS = """
import os, signal
from ia_core import indirect_attention
from ia_core.conformance import Implementation

def late_scale(query, key, value, *, scale=None, **keywords):
    return indirect_attention(query, key, value, scale=1.0 if scale is None else scale, **keywords)

def good(query, key, value, **keywords):
    return indirect_attention(query, key, value, **keywords)

def crashes(query, key, value):
    os.kill(os.getpid(), signal.SIGSEGV)

def swapped(query, key, value, **keywords):
    swap = lambda a: a.swapaxes(-3, -2)
    return swap(late_scale(swap(query), swap(key), swap(value), **keywords))

adapter = Implementation(late_scale, "late", dtypes=("bfloat16",), supports={"scale", "position_bias"})
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with a module of kernels in it."""
    (tmp_path / "kernels.py").write_text(KERNELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "kernels", raising=False)
    return tmp_path


def failures_of(target: str, label: str, *words: str) -> dict[str, Any]:
    """Judge and save; the failing verdict as JSON."""
    assert main(["conform", target, "--clause", label, "--save", "saved", "--json", "r.json", *words]) == 1
    found: dict[str, Any] = next(
        v for v in json.loads(Path("r.json").read_text())["verdicts"] if v["outcome"] == "fail"
    )
    return found


def script(path: str, *words: str, blocked: str = "ia_core") -> subprocess.CompletedProcess[str]:
    """Run the script beside a saved case, where a package cannot be imported."""
    code = f"import sys, runpy; sys.modules[{blocked!r}] = None; sys.argv = sys.argv[1:]; "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    name = path.replace(".safetensors", ".py")
    return subprocess.run([sys.executable, "-c", code, name, *words], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_a_saved_case_is_repeated_bit_for_bit(folder: Path, capsys: Any, dtype: str) -> None:
    verdict = failures_of("kernels:late_scale", "IA-F-02", "--dtypes", dtype)
    path = verdict["details"]["saved"]
    assert Path(path).name == f"kernels.late_scale-IA-F-02-{dtype}.safetensors"
    capsys.readouterr()
    assert main(["replay", path, "kernels:late_scale"]) == 1
    said = capsys.readouterr().out
    assert verdict["reason"] in said and f"IA-F-02 the default scale is 1 / sqrt(D) ({dtype})" in said
    assert main(["replay", path, "kernels:good"]) == 0
    assert "kernels:good: pass" in capsys.readouterr().out
    assert sorted(p.suffix for p in Path("saved").iterdir()) == [".py", ".safetensors"]  # nothing half written


def test_what_the_clause_adds_is_the_same(folder: Path, capsys: Any) -> None:
    """IA-E-05 permutes by the seed of the case: the call that failed is not the one that was drawn."""
    verdict = failures_of("kernels:late_scale", "IA-E-05")
    saved = read_case(verdict["details"]["saved"])
    assert saved.case is not None and saved.case.bias is None and saved.about["call"]["trees"]["bias"] == "array"
    capsys.readouterr()
    assert main(["replay", verdict["details"]["saved"], "kernels:late_scale"]) == 1
    assert verdict["reason"] in capsys.readouterr().out


def test_a_crash_is_saved_and_repeated(folder: Path, capsys: Any) -> None:
    verdict = failures_of("kernels:crashes", "IA-F-02")
    assert main(["replay", verdict["details"]["saved"], "kernels:crashes"]) == 1
    assert "the process was killed by SIGSEGV" in capsys.readouterr().out


def test_layout_and_adapters(folder: Path, capsys: Any) -> None:
    path = failures_of("kernels:swapped", "IA-F-02", "--layout", "BMHD")["details"]["saved"]
    assert main(["replay", path, "kernels:swapped"]) == 1  # the file knows the layout
    assert main(["replay", path, "kernels:good", "--layout", "BHMD"]) == 0
    path = failures_of("kernels:adapter", "IA-F-02")["details"]["saved"]
    assert main(["replay", path, "kernels:adapter", "--in-process"]) == 1
    assert main(["replay", path, "reference-numpy"]) == 0


PLAIN = """
import numpy as np
def attention(query, key, value, *, bias=None, mask=None, scale=None):
    H = query.shape[-3]
    key, value = (np.repeat(a, H // a.shape[-3], axis=-3) for a in (key, value))
    s = query @ np.swapaxes(key, -1, -2) * (1.0 if scale is None else scale)
    s = s if bias is None else s + bias
    s = s if mask is None else np.where(mask, s, -np.inf)
    e = np.exp(s - s.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True) @ value
"""


def test_the_script_needs_only_numpy_and_the_function(folder: Path) -> None:
    (folder / "plain.py").write_text(PLAIN)
    path = failures_of("plain:attention", "IA-F-02")["details"]["saved"]
    for blocked in ("ia_core", "safetensors", "ml_dtypes"):
        run = script(path, blocked=blocked)
        assert run.returncode == 1, run.stdout + run.stderr
        assert "times the bound" in run.stdout and "wanted" in run.stdout
    (folder / "right.py").write_text(PLAIN.replace("1.0 if", "query.shape[-1] ** -0.5 if"))
    run = script(path, "right:attention")
    assert run.returncode == 0 and "this output is right" in run.stdout, run.stdout + run.stderr


@pytest.mark.parametrize(("library", "label"), [("torch", "IA-F-02"), ("jax", "IA-F-04")])
def test_the_script_of_a_framework(folder: Path, library: str, label: str) -> None:
    pytest.importorskip(library)
    path = failures_of("kernels:late_scale", label, "--library", library, "--dtypes", "bfloat16")["details"]["saved"]
    run = script(path, blocked="safetensors")
    assert run.returncode == 1 and "times the bound" in run.stdout, run.stdout + run.stderr
    run = script(path, "kernels:good", blocked="safetensors")
    assert run.returncode == 0, run.stdout + run.stderr


def some_case(dtype: str = "float32", **changes: Any) -> Case:
    rng = np.random.default_rng(0)
    return Case(*(rng.standard_normal((1, 3, 2)).astype(numpy_dtype(dtype)) for _ in range(3)), seed=3).but(**changes)


def saved(folder: Path, case: Case, label: str = "IA-F-01") -> Path:
    verdict = Verdict(label, "mine", "fail", "it did not", dtype=case.dtype, failing=case)
    implementation = Implementation(ia_core.indirect_attention, "mine", target="kernels:good")
    return save_failure(folder, verdict, case, implementation, profile="quick", seed=0)


def test_every_kind_of_argument_survives(tmp_path: Path) -> None:
    mlp = OffsetMLP(*(np.ones(s, np.float32) for s in ((4,), (4,), (4, 1), (1,))))
    edge = ia_core.EdgeMLP(*(np.ones(s, np.float32) for s in ((2, 4), (4,), (4, 1), (1,))))
    grid = Grid(np.arange(3, dtype=np.float32), np.arange(1, dtype=np.float32))
    boxes = PositionBias(ia_core.BoxMLP(edge, edge), np.ones((3, 4), np.float32), grid)
    changes: list[dict[str, Any]] = [
        {"bias": PositionBias(mlp, np.arange(3), np.linspace(0, 1, 3, dtype=np.float32))},
        {"bias": boxes},
        {"mask": np.array([[True, False, True]]), "scale": 1 / 3},
        {"scale": 2, "bias": np.array([[np.nan, np.inf, -0.0]], np.float32)},
        {"query": np.zeros((1, 0, 2), np.float32)},
        {"key": some_case().key[..., ::-1]},
    ]
    for change in changes:
        case = some_case(**change)
        again = read_case(saved(tmp_path, case)).case
        assert again is not None and (again.seed, again.scale, type(again.scale)) == (3, case.scale, type(case.scale))
        ours, theirs = (_leaves(c) for c in (case, again))
        assert [a.dtype for a in ours] == [a.dtype for a in theirs] and [a.shape for a in ours] == [
            a.shape for a in theirs
        ]
        assert [a.tobytes() for a in ours] == [a.tobytes() for a in theirs]
        assert type(again.bias) is type(case.bias)


def _leaves(case: Case) -> list[np.ndarray]:
    def walk(value: Any) -> list[np.ndarray]:
        if isinstance(value, tuple):
            return [leaf for part in value for leaf in walk(part)]
        return [] if value is None else [np.array(value, order="C")]

    return walk((case.query, case.key, case.value, case.bias, case.mask))


def test_other_readers_of_the_format_take_a_saved_case(tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    path = saved(tmp_path, some_case("bfloat16"))
    theirs, ours = numpy.load_file(path), load(path)
    assert theirs.keys() == ours.keys()
    assert all(theirs[name].tobytes() == ours[name].tobytes() for name in ours)


def test_a_call_that_no_file_holds_leaves_the_case(tmp_path: Path) -> None:
    verdict = Verdict("IA-X-01", "mine", "fail", "it took a list", dtype="float32", failing=some_case(bias=[1.0]))
    implementation = Implementation(ia_core.indirect_attention, "mine", target="kernels:good")
    path = save_failure(tmp_path, verdict, None, implementation, profile="quick", seed=0)
    assert read_case(path).case is None and read_case(path).about["call"] is None
    run = script(str(path))
    assert run.returncode == 2 and "not one that a file holds" in run.stdout


def test_the_bound_in_the_file_is_that_of_the_suite(tmp_path: Path) -> None:
    case = some_case()
    arrays = load(saved(tmp_path, case))
    Implementation(lambda q, k, v: arrays["wanted.output"].astype(np.float32), "truth").run(case)
    with pytest.raises(Failure):
        wrong = arrays["wanted.output"] + 2 * arrays["bound.output"]
        CLAUSES["IA-F-01"].check(Implementation(lambda q, k, v: wrong.astype(np.float32), "wrong"), case)


# ----------------------------------------------------------------------------------------------------- hostile files


def rewritten(path: Path, change: Any) -> bytes:
    """The file with its description changed."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    about = json.loads(header["__metadata__"]["about"])
    change(about)
    header["__metadata__"]["about"] = json.dumps(about)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda about: about.update(label="IA-Z"), "its label is IA-Z, which does not exist here"),
        (lambda about: about.update(dtype="float8"), "its dtype is float8"),
        (lambda about: about.update(dtype="float64"), "its query is of float32, not float64"),
        (lambda about: about.update(seed=-1), "the seed of its run is not a natural number"),
        (lambda about: about.update(supports="all"), "its features are not words"),
        (lambda about: about.pop("label"), "it has no 'label'"),
        (lambda about: about.update(drawn=[]), "its case is not described"),
        (lambda about: about["drawn"].update(seed="x"), "its seed is not a natural number"),
        (lambda about: about["drawn"].update(scale="x"), "invalid hexadecimal"),
        (lambda about: about["drawn"].update(scale=[1]), "scale"),
        (lambda about: about["drawn"]["trees"].update(query={"type": "os.system"}), "neither an array nor a bias"),
        (lambda about: about["drawn"]["trees"].update(bias={"type": "Grid"}), "neither an array nor a PositionBias"),
        (lambda about: about["drawn"]["trees"].update(mask="array"), "it has no 'drawn.mask'"),
        (lambda about: about["drawn"]["trees"].update(key=None), "must be an array"),
    ],
)
def test_a_file_that_says_nonsense(tmp_path: Path, change: Any, text: str) -> None:
    path = saved(tmp_path, some_case())
    path.write_bytes(rewritten(path, change))
    with pytest.raises(ValueError, match=r"is not a case that .* wrote: .* \[IA-X-24\]") as error:
        read_case(path)
    assert text in str(error.value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 8,
        b"\xff" * 64,
        b"\x10\0\0\0\0\0\0\0" + b"[" * 16,
        struct.pack("<Q", 2) + b"{}",
        saves({"a": np.zeros(1)}),
    ],
)
def test_a_file_that_is_something_else(tmp_path: Path, data: bytes, capsys: Any) -> None:
    path = tmp_path / "case.safetensors"
    path.write_bytes(data)
    assert main(["replay", str(path), "reference-numpy"]) == 2
    assert "is not a case that `ia-core conform --save` wrote: " in capsys.readouterr().err


def test_a_file_that_is_not_there_or_cut_or_flipped(tmp_path: Path, capsys: Any) -> None:
    assert main(["replay", str(tmp_path / "nothing"), "reference-numpy"]) == 2
    assert "cannot be read: No such file" in capsys.readouterr().err
    path = saved(tmp_path, some_case())
    data, rng = path.read_bytes(), np.random.default_rng(0)
    header = 8 + struct.unpack("<Q", data[:8])[0]
    for _ in range(500):
        broken = bytearray(data[: rng.integers(len(data))] if rng.random() < 0.3 else data)
        for at in rng.integers(0, max(1, min(header, len(broken))), 2):
            if broken:
                broken[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(broken))
        try:
            read_case(path)  # a flipped bit in a number or in a text is another case
        except ValueError as error:
            assert str(error).endswith("[IA-X-24]")


def test_a_target_that_makes_no_sense(tmp_path: Path, capsys: Any) -> None:
    path = saved(tmp_path, some_case())
    assert main(["replay", str(path), "nowhere:f"]) == 2
    assert "`nowhere:f` does not import" in capsys.readouterr().err
    assert main(["replay", str(path), "reference-numpy", "--timeout", "0"]) == 2
    assert "`--timeout` must be above 0" in capsys.readouterr().err
