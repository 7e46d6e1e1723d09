"""Compile the kernels for a GPU without having one: what the launcher would launch, for compute capability 9.0.

    python benchmarks/offline_gpu.py [--only TEXT] [--first 3] [--capability 86] [--keep]

It needs Triton, and takes some seconds for each kernel. A line for each: registers, spilled bytes, shared memory,
whether ptxas says that it serializes products, and how many barriers the code has. A kernel with more shared memory
than such a GPU has is a failure. ``--keep`` writes how many there were to docs/results/offline_gpu.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import compile_gpu
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ia_core.backends import _torch_triton, _triton_call, _triton_launch, _triton_lines
from ia_core.conformance._files import write_whole

RESULTS = Path(__file__).resolve().parents[1] / "docs/results/offline_gpu.json"

# Bytes of shared memory of a program (CUDA C++ Programming Guide, Compute Capabilities).
SHARED = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 120: 99 * 1024}
TYPES = {torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16"}
TYPES |= {torch.int8: "i8", torch.int32: "i32", torch.int64: "i64"}
KERNELS = {
    _triton_launch: ("forward_kernel", "forward_bounded", "longest_keys", "backward_queries", "backward_keys"),
    _triton_call: ("span_tiles", "order_tiles", "pack_lines"),
    _triton_lines: ("sort_knots", "sum_active"),
}
OPTIONS = ("num_warps", "num_stages", "maxnreg", "enable_fp_fusion")


class Recorder:
    """In place of a kernel: compiles what it would be launched with, once for each signature, and tells ``built``."""

    def __init__(
        self, kernel: Any, seen: set[Any], told: Callable[[str, Any, float], None], capability: int = 90
    ) -> None:
        self.kernel, self.seen, self.told, self.capability = kernel, seen, told, capability

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return self.launch

    def launch(self, *arguments: Any, **named: Any) -> None:
        options = {name: named.pop(name) for name in OPTIONS if name in named}
        signature: dict[str, str] = {}
        constants: dict[Any, Any] = {}
        attributes: dict[Any, Any] = {}
        given = dict(zip(self.kernel.arg_names, arguments, strict=False)) | named
        for at, name in enumerate(self.kernel.arg_names):
            value = given[name]
            special = not self.kernel.params[at].do_not_specialize
            known = name in named or self.kernel.params[at].is_constexpr or value is None
            if known or (type(value) is int and value == 1 and special):
                signature[name], constants[(at,)] = "constexpr", value
            elif isinstance(value, torch.Tensor):
                signature[name], attributes[(at,)] = f"*{TYPES[value.dtype]}", [["tt.divisibility", 16]]
            else:
                signature[name] = "fp32" if type(value) is float else "i32"
                if type(value) is int and value % 16 == 0 and special:
                    attributes[(at,)] = [["tt.divisibility", 16]]
        key = (self.kernel.__name__, str(signature), str(constants), str(sorted(attributes)), str(options))
        if key not in self.seen:
            self.seen.add(key)
            began = time.perf_counter()
            source = ASTSource(self.kernel, signature, constexprs=constants, attrs=attributes)
            built = triton.compile(source, target=GPUTarget("cuda", self.capability, 32), options=options)
            self.told(self.kernel.__name__, built, time.perf_counter() - began)


def record(told: Callable[[str, Any, float], None], capability: int = 90) -> set[Any]:
    """Put recorders in the place of all kernels; the set holds what they have compiled."""
    seen: set[Any] = set()
    for module, names in KERNELS.items():
        for name in names:
            kernel = getattr(module, name)
            kernel = kernel.kernel if isinstance(kernel, Recorder) else kernel
            setattr(module, name, Recorder(kernel, seen, told, capability))
    _torch_triton.why_not_here = lambda kind: None
    _triton_call.shared_memory = lambda device: SHARED[capability]
    return seen


def facts(built: Any, capability: int = 90) -> str:
    """What ptxas says of a kernel."""
    tools = sorted((Path(triton.__file__).parent / "backends/nvidia/bin").glob("ptxas*"))
    with tempfile.TemporaryDirectory() as work:
        source = Path(work) / "kernel.ptx"
        source.write_text(built.asm["ptx"], encoding="utf-8")
        for ptxas in tools:  # of several, one knows the version of the code
            words = [
                str(ptxas),
                "-v",
                f"-arch=sm_{'90a' if capability == 90 else capability}",
                str(source),
                "-o",
                os.devnull,
            ]
            said = subprocess.run(words, capture_output=True, text=True, check=False)
            text = said.stdout + said.stderr
            if said.returncode == 0:
                break
    registers = re.findall(r"Used (\d+) registers", text)
    spilled = re.findall(r"(\d+) bytes spill stores", text)
    serial = ", SERIALIZED" if "serialized" in text else ""
    barriers = len(re.findall(r"\bbar(?:rier)?\.", built.asm["ptx"]))
    serial += f", {barriers} barriers"
    return f"{registers} registers, {spilled} bytes spilled, {built.metadata.shared} bytes shared{serial}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="variants whose name has this in it")
    parser.add_argument("--first", type=int, default=1000, help="as many variants")
    parser.add_argument("--capability", type=int, choices=list(SHARED), default=90)
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    if options.keep and options.first < 1000:
        parser.error("--keep is for all variants that --only leaves")
    most = 0

    def told(name: str, built: Any, took: float) -> None:
        nonlocal most
        print(f"    {name}: {facts(built, options.capability)}, {took:.1f} s", flush=True)
        most = max(most, built.metadata.shared)
        if built.metadata.shared > SHARED[options.capability]:
            raise RuntimeError(f"{name} needs more shared memory than {SHARED[options.capability]} bytes")

    seen = record(told, options.capability)
    failed = 0
    own = [one for one in compile_gpu.variants() if one.path != "torch-flex-knots"]  # PyTorch's compiler needs the GPU
    tried = [one for one in own if options.only in one.name][: options.first]
    for variant in tried:
        print(variant.name, flush=True)
        try:
            compile_gpu.results(variant, variant.path, compile_gpu.arrays_of(variant))
        except Exception as error:
            failed += 1
            print(f"    FAIL {type(error).__name__}: {str(error)[-1500:]}", flush=True)
    print(f"{len(seen)} kernels, {failed} variants failed")
    if options.keep:
        kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        about = {"date": datetime.date.today().isoformat(), "triton": triton.__version__, "only": options.only}
        found = {"variants": len(tried), "kernels": len(seen), "failed": failed, "most_shared_bytes": most}
        kept[str(options.capability)] = about | found
        write_whole(RESULTS, json.dumps(kept, indent=1) + "\n")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
