"""Compile every variant of the kernels for GPUs and compare it with the specification in float64: a line for each.

    python benchmarks/compile_gpu.py [--only TEXT] [--seconds 35] [--workers 8]

On a CUDA device; under TRITON_INTERPRET=1 on the CPU, slowly. A variant that fails is reported, and the others go on.
The number after each name is the error as a part of the largest number of the result. Variants are compiled by several
processes; what is not done after ``--seconds`` is named and left.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

import ia_core
from ia_core import LinearOffset, OffsetMLP, OffsetTable, PositionBias
from ia_core.backends import indirect_attention, use_backend

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Errors of sums of some hundreds of rounded terms, as parts of the largest result: far above what rounding does, far
# below what a wrong tile does.
LIMITS = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
NAMES = ("output", "lse", "query", "key", "value", "w1", "b1", "w2", "b2", "queries", "values")


class Variant(NamedTuple):
    """What decides which code is compiled."""

    dtype: torch.dtype = torch.bfloat16
    path: str = "torch-triton"
    bias: str = "mlp"
    mask: str = ""
    M: int = 200
    N: int = 333
    D: int = 64
    Dv: int = 64
    H: int = 4
    Hk: int = 4
    B: int = 2
    hidden: int = 24
    backward: bool = True

    @property
    def name(self) -> str:
        own = {key: value for key, value in self._asdict().items() if value != self._field_defaults[key]}
        return f"{str(self.dtype).removeprefix('torch.')} {self.path} {self.bias} {self.mask or 'unmasked'} {own}"


def variants() -> Iterator[Variant]:
    """The benchmark's own first."""
    half, whole, rounded = torch.bfloat16, torch.float32, "torch-triton-rounded"
    for path in (rounded, "torch-triton"):
        yield Variant(path=path, M=512, N=512)
    yield Variant(path=rounded)
    yield Variant(path=rounded, hidden=512, M=384, N=384)
    for dtype in (torch.float16, whole):
        yield Variant(dtype)
    yield Variant(torch.float16, rounded)
    for bias in ("none", "table", "linear", "dense"):
        yield Variant(path=rounded, bias=bias)
        yield Variant(whole, bias=bias)
    for mask in ("rows", "padding", "heads"):
        yield Variant(half, mask=mask)
        yield Variant(whole, mask=mask, Hk=2)
    yield Variant(path=rounded, D=128, Dv=128)
    yield Variant(path=rounded, D=40, Dv=72, Hk=2)
    yield Variant(path=rounded, D=256, Dv=256, M=100, N=130)
    yield Variant(whole, D=256, Dv=256, M=100, N=130)
    yield Variant(half, M=5, N=7)
    yield Variant(path=rounded, bias="none", M=512, N=512)
    for bias in ("mlp", "none", "table", "linear", "dense"):
        yield Variant(whole, "torch-flex-knots", bias, mask="" if bias == "none" else "rows", Hk=2)
    yield Variant(path="torch-flex-knots", M=512, N=512)


def arrays_of(variant: Variant) -> tuple[list[Any], list[Any], Any]:
    """Query, key, value; the parameters and positions of a network; a mask."""
    random = np.random.default_rng(0)
    v = variant

    def leaf(array: Any, dtype: torch.dtype = torch.float32) -> Any:
        return torch.as_tensor(array, device=DEVICE).to(dtype).requires_grad_(v.backward)

    shapes = ((v.B, v.H, v.M, v.D), (v.B, v.Hk, v.N, v.D), (v.B, v.Hk, v.N, v.Dv))
    arrays = [leaf(random.normal(size=shape), v.dtype) for shape in shapes]
    w1 = random.normal(size=v.hidden)
    leaves = [w1, -w1 * random.uniform(-v.N, v.N, size=v.hidden), random.normal(size=(v.hidden, v.H)) / v.N]
    leaves += [np.zeros(v.H), np.sort(random.uniform(0, v.N, size=(v.B, v.M))), np.arange(float(v.N))]
    masks = {"rows": (v.M, v.N), "padding": (v.B, 1, 1, v.N), "heads": (v.B, v.H, v.M, v.N)}
    mask = None
    if v.mask:
        mask = torch.as_tensor(random.random(size=masks[v.mask]) < 0.7, device=DEVICE)
        mask[..., 0, :] = mask[..., 0, :] & (v.mask == "padding")
    return arrays, [leaf(each) for each in leaves], mask


def results(variant: Variant, path: str, given: tuple[list[Any], list[Any], Any]) -> list[Any]:
    """Output, lse and, where they are asked for, all gradients, from one path."""
    arrays, leaves, mask = given
    if path == "reference":
        arrays, leaves = ([a.detach().double().requires_grad_(variant.backward) for a in each] for each in given[:2])
    bias, wanted = None, list(arrays)
    if variant.bias == "mlp":
        bias, wanted = PositionBias(OffsetMLP(*leaves[:4]), *leaves[4:]), [*arrays, *leaves]
    elif variant.bias in ("table", "linear"):
        values = torch.linspace(-1, 1, 41, device=DEVICE, dtype=leaves[0].dtype) ** 2
        kinds = {"table": OffsetTable, "linear": LinearOffset}
        f: Any = kinds[variant.bias](values.expand(variant.H, 41) if variant.bias == "table" else values[: variant.H])
        bias, wanted = PositionBias(f, *leaves[4:]), [*arrays, *leaves[4:]]
    elif variant.bias == "dense":
        shape = (variant.H, variant.M, variant.N)
        bias = torch.arange(math.prod(shape), device=DEVICE).reshape(shape).remainder(17).to(leaves[0].dtype) / 8
    with use_backend(path):
        found = list(indirect_attention(*arrays, bias=bias, mask=mask, return_lse=True))
    if variant.backward:
        output, lse = (one.double() for one in found)
        loss = (output * torch.linspace(-1, 1, output.numel(), device=DEVICE).double().reshape(output.shape)).sum()
        loss = loss + torch.where(torch.isinf(lse), 0.0, lse).sin().sum()
        found += torch.autograd.grad(loss, wanted)
    return [one.detach().double() for one in found]


def judge(variant: Variant) -> str:
    """The line for a variant; raises if a number is off."""
    given = arrays_of(variant)
    began = time.perf_counter()
    got = results(variant, variant.path, given)
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    took = time.perf_counter() - began
    again = results(variant, variant.path, given)
    want = results(variant, "reference", given)
    errors, bad = [], []
    for at, (one, repeated, true) in enumerate(zip(got, again, want, strict=True)):
        name = NAMES[at]
        finite = torch.isfinite(true)
        size = true[finite].abs().max().item() if finite.any() else 1.0
        error = (one - true)[finite].abs().max().item() / max(size, 1e-3) if finite.any() else 0.0
        errors.append(f"{name} {error:.1e}")
        if not error <= LIMITS[variant.dtype] or not torch.equal(one[~finite], true[~finite]):
            bad.append(name)
        # PyTorch sums gradients of what a score function reads by atomic additions.
        atomic = variant.path == "torch-flex-knots" and at > 1
        if not atomic and not torch.equal(one, repeated) and not torch.isnan(one).any():
            bad.append(f"{name} differs in the second call")
    verdict = "ok  " if not bad else f"BAD ({', '.join(bad)})"
    return f"{verdict} {took:5.1f} s  {variant.name}: {', '.join(errors)}"


def line_of(variant: Variant) -> str:
    """The line for a variant, whatever happens."""
    try:
        return judge(variant)
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        text = " ".join(str(error).split())[-600:]
        return f"FAIL {variant.name}: {type(error).__name__} at {last.name}:{last.lineno}: {text}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="variants whose name has this in it")
    parser.add_argument("--seconds", type=float, default=35.0)
    parser.add_argument("--workers", type=int, default=8 if DEVICE == "cuda" else 1)
    options = parser.parse_args()
    where = torch.cuda.get_device_name() if DEVICE == "cuda" else "the CPU"
    print(f"on {where}, PyTorch {torch.__version__}, ia_core {ia_core.__version__}", flush=True)
    until = time.monotonic() + options.seconds
    left = [variant for variant in variants() if options.only in variant.name]
    failed = 0
    with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
        waiting = {variant: pool.apply_async(line_of, (variant,)) for variant in left}
        while waiting and time.monotonic() < until:
            for variant, answer in [pair for pair in waiting.items() if pair[1].ready()]:
                line = answer.get()
                failed += not line.startswith("ok")
                print(line, flush=True)
                del waiting[variant]
            time.sleep(0.05)
        for variant in waiting:
            print(f"left {variant.name}", flush=True)
        pool.terminate()
    print(f"{failed} failed, {len(waiting)} left" if failed or waiting else "all ok")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
