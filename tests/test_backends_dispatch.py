"""Which path runs, what is said about it, and how a path is asked for."""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ia_core
from ia_core.backends import Explanation, _registry, available, explain, indirect_attention, use_backend

from .test_backends_bounds import JAX, LIBRARIES, NATIVE, NUMPY

Q = np.ones((1, 2, 4), np.float32)
# What the compiled kernel says to a plain call of PyTorch, and where it is turned off.
LINES = "it is for position biases"
PLAIN = {"torch-native": "without a position bias or the lse PyTorch's own kernel serves", "torch-lines": LINES}
OFF = {"torch-native": "IA_CORE_NATIVE=0 turns the compiled kernel off"}
FRAMEWORKS = ("torch", "jax", "cupy", "dask", "cubed", "ml_dtypes")


def python(code: str, folder: Path) -> str:
    """What a fresh interpreter prints, started away from the tree."""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


LOADED = f"print(sorted(name for name in {FRAMEWORKS!r} if name in sys.modules))"


def test_a_call_on_numpy_imports_no_framework(tmp_path: Path) -> None:
    code = f"""
import sys
import numpy as np
from ia_core.backends import available, explain, indirect_attention, use_backend
q = np.ones((1, 2, 4))
indirect_attention(q, q, q, return_lse=True)
print(explain(q, q, q).path)
with use_backend("reference"):
    indirect_attention(q, q, q)
try:
    with use_backend("torch-sdpa"):
        indirect_attention(q, q, q)
except ValueError as error:
    print("IA-X-23" in str(error))
assert available()
{LOADED}
"""
    assert python(code, tmp_path).splitlines() == [NUMPY, "True", "[]"]


@pytest.mark.parametrize(("library", "array"), [("torch", "torch.ones(1, 2, 4)"), ("jax", "jax.numpy.ones((1, 2, 4))")])
def test_a_call_on_one_framework_imports_no_other(library: str, array: str, tmp_path: Path) -> None:
    code = f"""
import sys, {library}
before = set(sys.modules)
from ia_core.backends import explain, indirect_attention
q = {array}
indirect_attention(q, q, q), explain(q, q, q)
print(sorted(name for name in {FRAMEWORKS!r} if name in sys.modules and name not in before))
"""
    assert python(code, tmp_path) == "[]"


@pytest.mark.parametrize(("library", "path"), [("numpy", NUMPY), ("torch", "torch-sdpa"), ("jax", JAX)])
def test_explain_names_the_first_choice(library: str, path: str) -> None:
    q = LIBRARIES[library].give(Q)
    without = {} if NATIVE is None else {f"{library}-native": NATIVE}
    assert explain(q, q, q) == Explanation(path, PLAIN if library == "torch" else without)
    assert str(explain(q, q, q)).splitlines()[0] == path


def test_explain_says_why_a_path_declines(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setenv("IA_CORE_NATIVE", "0")
    q = torch.ones(1, 2, 4)
    assert str(explain(q, q, q, return_lse=True)) == (
        f"torch-tiled\n  torch-native declined: {OFF['torch-native']}\n  torch-lines declined: {LINES}\n"
        f"  torch-sdpa declined: scaled_dot_product_attention does not give the lse"
    )
    elsewhere = q.to("meta")
    assert str(explain(elsewhere, elsewhere, elsewhere)) == (
        "torch-tiled\n  torch-native declined: its kernel is for the CPU; `query` is on meta\n"
        f"  torch-lines declined: {LINES}\n"
        "  torch-sdpa declined: its kernels were found to keep the rules on the CPU only; "
        "`query` is on meta"
    )


def test_explain_computes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("computed")

    for name in ("matmul", "exp", "sum", "where"):
        monkeypatch.setattr(np, name, refuse)
    assert explain(Q, Q, Q, mask=np.ones((2, 2), bool), return_lse=True).path == NUMPY


def test_explain_is_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    ran = []
    for name, _, importable in available():
        if not importable or name == "cupy-tiled" or name == "reference":
            continue
        module = _registry.load(name)
        attend = module.attend
        monkeypatch.setattr(module, "attend", lambda *a, n=name, f=attend: (ran.append(n), f(*a))[1])
    for library in ("numpy", "torch", "jax"):
        q = LIBRARIES[library].give(Q)
        for lse in (False, True):
            ran.clear()
            indirect_attention(q, q, q, return_lse=lse)
            assert ran == [explain(q, q, q, return_lse=lse).path]
    with torch.no_grad(), torch.inference_mode():
        assert explain(*[torch.ones(1, 2, 4)] * 3).path == "torch-sdpa"


class Loud(np.ndarray):
    """A subclass with nothing of its own; what it would do cannot be known."""


def test_subclasses_are_left_to_the_reference() -> None:
    import torch

    class Tensor(torch.Tensor):
        pass

    for array, kind, own in (
        (Q.view(Loud), "Loud", ["numpy-native", "numpy-tiled"]),
        (torch.ones(1, 2, 4).as_subclass(Tensor), "Tensor", [name for name in _registry.PATHS if "torch" in name]),
    ):
        why = dict.fromkeys(own, f"`query` is a {kind}, which may compute in its own way")
        if "torch-mesh" in why:
            why["torch-mesh"] = "`query` is not spread over a mesh"
        assert explain(array, array, array) == Explanation("reference", why)
        assert type(indirect_attention(array, array, array)) is type(ia_core.indirect_attention(array, array, array))


def test_what_stands_for_an_array_takes_the_path_of_its_library(tmp_path: Path) -> None:
    import jax
    import torch
    from torch._subclasses import FakeTensorMode

    parameter = torch.nn.Parameter(torch.ones(1, 2, 4))
    assert explain(parameter, parameter, parameter).path == "torch-sdpa"
    with FakeTensorMode():
        fake = torch.ones(1, 2, 4)
        assert explain(fake, fake, fake).path == "torch-sdpa"
        assert indirect_attention(fake, fake, fake).shape == (1, 2, 4)
    said = []
    jax.make_jaxpr(lambda q: said.append(explain(q, q, q).path) or q)(jax.numpy.ones((1, 2, 4)))
    jax.vmap(lambda q: said.append(explain(q, q, q).path) or q)(jax.numpy.ones((3, 1, 2, 4)))
    jax.grad(lambda q: said.append(explain(q, q, q).path) or q.sum())(jax.numpy.ones((1, 2, 4)))
    assert said == [JAX] * 3
    np.save(tmp_path / "q.npy", Q)
    mapped = np.load(tmp_path / "q.npy", mmap_mode="r")
    assert explain(mapped, mapped, mapped).path == NUMPY


def test_any_other_library_takes_the_reference() -> None:
    strict = pytest.importorskip("array_api_strict")
    q = strict.asarray(Q)
    said = explain(q, q, q)
    assert said.path == "reference" and set(said.declined) == set(_registry.PATHS) - {"reference"}
    assert said.declined["torch-sdpa"] == "it takes arrays of torch; these are of array_api_strict"
    assert strict.all(indirect_attention(q, q, q) == ia_core.indirect_attention(q, q, q))


def test_use_backend_nests_and_is_left_by_an_error() -> None:
    q = LIBRARIES["torch"].give(Q)
    with use_backend("torch-tiled"):
        asked = {"torch-sdpa": "use_backend('torch-tiled') is in effect"}
        assert explain(q, q, q) == Explanation("torch-tiled", PLAIN | asked)
        with pytest.raises(KeyError), use_backend("reference"):
            assert explain(q, q, q).path == "reference"
            raise KeyError
        assert explain(q, q, q).path == "torch-tiled"
    assert explain(q, q, q).path == "torch-sdpa"
    assert _registry._asked == ()


def test_use_backend_refuses_an_unknown_name_at_once() -> None:
    with pytest.raises(ValueError) as caught:
        use_backend("cuda")
    assert str(caught.value) == f"`name` must be one of {', '.join(_registry.PATHS)}; got 'cuda' [IA-X-22]"


@pytest.mark.parametrize(
    ("name", "library", "keywords", "reason"),
    [
        ("jax-jit", "numpy", {}, "it takes arrays of jax; these are of numpy"),
        ("cupy-tiled", "torch", {}, "it takes arrays of cupy; these are of torch"),
        ("torch-sdpa", "torch", {"return_lse": True}, "scaled_dot_product_attention does not give the lse"),
    ],
)
def test_a_path_that_declines_is_an_error(name: str, library: str, keywords: dict[str, Any], reason: str) -> None:
    q = LIBRARIES[library].give(Q)
    wanted = f"`use_backend` asks for {name!r}, which declines this call: {reason} [IA-X-23]"
    for function in (indirect_attention, explain):
        with use_backend(name), pytest.raises(ValueError) as caught:
            function(q, q, q, **keywords)
        assert str(caught.value) == wanted


def test_use_backend_is_seen_by_its_own_thread_alone() -> None:
    inside, seen = threading.Event(), threading.Event()
    told: list[str] = []

    def other() -> None:
        inside.wait(10)
        told.append(explain(Q, Q, Q).path)
        with use_backend("numpy-tiled"):
            told.append(explain(Q, Q, Q).path)
        seen.set()

    thread = threading.Thread(target=other)
    thread.start()
    with use_backend("reference"):
        inside.set()
        assert seen.wait(10)
        assert explain(Q, Q, Q).path == "reference"
    thread.join()
    assert told == [NUMPY, "numpy-tiled"] and _registry._asked == ()


def test_use_backend_is_seen_by_its_own_task_alone() -> None:
    async def forced(name: str) -> list[str]:
        told = []
        with use_backend(name):
            for _ in range(3):
                await asyncio.sleep(0)
                told.append(explain(Q, Q, Q).path)
        return told

    async def free() -> list[str]:
        told = []
        for _ in range(3):
            await asyncio.sleep(0)
            told.append(explain(Q, Q, Q).path)
        return told

    async def together() -> list[list[str]]:
        return await asyncio.gather(forced("reference"), free(), forced("numpy-tiled"))

    assert asyncio.run(together()) == [["reference"] * 3, [NUMPY] * 3, ["numpy-tiled"] * 3]
    assert _registry._asked == ()


def test_available_is_complete_and_true() -> None:
    paths = {path.name: path for path in available()}
    assert list(paths) == list(_registry.PATHS)
    for path in paths.values():
        there = path.library == "any" or importlib.util.find_spec(path.library) is not None
        assert path.importable is there
    for path in paths.values():
        if path.importable:
            assert callable(_registry.load(path.name).attend)


def test_the_numbers_are_those_of_the_path_asked_for() -> None:
    # NumPy's path rounds differently only where it has several tiles; the reference is bitwise itself.
    random = np.random.default_rng(0)
    q, k, v = (random.normal(size=(2, 5, 4)) for _ in range(3))
    with use_backend("reference"):
        got = indirect_attention(q, k, v, return_lse=True)
    for one, other in zip(got, ia_core.indirect_attention(q, k, v, return_lse=True), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_plain_call_of_torch_skips_the_checks_and_no_other_does(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from ia_core import backends

    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(2, 3, n, 8, generator=generator) for n in (4, 5, 5))
    with use_backend("torch-sdpa"):
        want = indirect_attention(q, k, v)
    checked: list[Any] = []
    check = backends.check_call
    monkeypatch.setattr(backends, "check_call", lambda *arguments: checked.append(arguments) or check(*arguments))
    assert torch.equal(indirect_attention(q, k, v), want)
    assert torch.equal(indirect_attention(torch.nn.Parameter(q), k, v, scale=8**-0.5), want)
    assert not checked
    three = [array[0] for array in (q, k, v)]
    others: list[tuple[list[Any], dict[str, Any]]] = [
        (three, {}),
        ([q.half(), k.half(), v.half()], {}),
        ([q, k, v[..., :5]], {}),
        ([q, k[:, :1], v[:, :1]], {}),
        ([q[:, :, :0], k, v], {}),
        ([q, k[:, :, :0], v[:, :, :0]], {}),
        ([q, k, v], {"scale": 1}),
        ([q, k, v], {"mask": torch.ones(4, 5, dtype=torch.bool)}),
        ([q, k, v], {"bias": torch.zeros(4, 5)}),
        ([q, k, v], {"return_lse": True}),
    ]
    for arrays, keywords in others:
        checked.clear()
        indirect_attention(*arrays, **keywords)
        assert len(checked) == 1
    for arrays, keywords in (
        ([q, k.double(), v], {}),
        ([q, k[..., :7], v], {}),
        ([q, k, v[:, :, :4]], {}),
        ([q[:1], k, v], {}),
        ([q, k.numpy(), v], {}),
        ([q, k, v], {"scale": -1.0}),
        ([q, k, v], {"scale": float("nan")}),
    ):
        with pytest.raises((TypeError, ValueError), match=r"\[IA-X-"):
            indirect_attention(*arrays, **keywords)
    checked.clear()
    torch.func.vmap(indirect_attention)(q[None], k[None], v[None])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert indirect_attention(q, k, v).dtype == torch.float32
    with use_backend("torch-tiled"):
        indirect_attention(q, k, v)
    assert len(checked) == 3
