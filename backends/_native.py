"""The compiled kernel of native/: compiled on first use, kept for later, called on buffers.

It needs a C compiler on the machine; where there is none, or ``IA_CORE_NATIVE=0`` is set, its paths decline and others
serve. The library is kept in ``$IA_CORE_CACHE``, by default ``~/.cache/indirect-attention``, under a name made of its
source, the compiler and the processor's features, so that a home directory shared by machines does no harm.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["Call", "call_native", "describe", "entry_points", "threads", "why_not"]

SOURCES = ("attention.c", "blocks.h", "bias.h", "attend.h", "jax.c")
COMPILE = ("-std=gnu11", "-O3", "-march=native", "-fPIC")
LINK = ("-shared",)
_POINTER, _INT, _THREE, _FOUR = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64 * 3, ctypes.c_int64 * 4


class Call(ctypes.Structure):
    """``struct call`` of native/attention.c, field by field."""

    _fields_ = (
        *((name, _INT) for name in ("B", "H", "Hk", "M", "N", "D", "Dv", "K", "threads")),
        ("scale", ctypes.c_double),
        *((name, _POINTER) for name in ("query", "key", "value")),
        *((f"{name}_at", _THREE) for name in ("query", "key", "value")),
        ("bias", _POINTER),
        ("bias_at", _FOUR),
        ("mask", _POINTER),
        ("mask_at", _FOUR),
        *((name, _POINTER) for name in ("knots", "slopes", "intercepts", "query_positions", "value_positions")),
        *((name, _INT) for name in ("query_positions_at", "value_positions_at", "whole_positions")),
        *((name, _POINTER) for name in ("output", "lse", "top", "total", "cotangent", "lse_cotangent")),
        *((name, _POINTER) for name in ("d_query", "d_key", "d_value", "d_slopes", "d_intercepts")),
        *((name, _POINTER) for name in ("d_query_positions", "d_value_positions")),
    )


def why_not(headers: str | None = None) -> str | None:
    """Why the kernel cannot be had, or None; the first question compiles it.

    ``headers`` is where JAX keeps those of its interface: with it, the library is one that JAX can call.
    """
    if os.environ.get("IA_CORE_NATIVE") == "0":
        return "IA_CORE_NATIVE=0 turns the compiled kernel off"
    return _load(headers)[1]


def entry_points(headers: str) -> Any:
    """The library that JAX can call, or None."""
    return _load(headers)[0]


def threads() -> int:
    """How many the process's OpenMP would use."""
    library, _ = _load(None)
    return 1 if library is None else int(library.ia_threads())


def describe(
    look: Callable[[Any], tuple[int, Sequence[int]]],
    rows: Sequence[Any],
    lines: Sequence[Any] | None,
    scores: dict[str, Any],
    **numbers: Any,
) -> Call:
    """The kernel's view of arrays whose address and strides, in elements, ``look`` tells.

    ``rows`` are query (B, H, M, D), key (B, Hk, N, D) and value (B, Hk, N, Dv) with a contiguous last axis. ``lines``
    are knots (K,), slopes and intercepts (H, 2 K + 1), positions (B, M) and (B, N), all contiguous and in float64.
    ``scores`` may have a bias and a mask (B, H, M, N). ``numbers`` are further fields.
    """
    (B, H, M, D), (_, Hk, N, _), (*_, Dv) = (array.shape for array in rows)
    call = Call(B=B, H=H, Hk=Hk, M=M, N=N, D=D, Dv=Dv, **numbers)
    for name, array in zip(("query", "key", "value"), rows, strict=True):
        address, strides = look(array)
        setattr(call, name, address)
        setattr(call, f"{name}_at", tuple(strides[:3]))
    for name, array in scores.items():
        address, strides = look(array)
        setattr(call, name, address)
        setattr(call, f"{name}_at", tuple(strides))
    if lines is not None:
        call.K = lines[0].shape[0]
        names = ("knots", "slopes", "intercepts", "query_positions", "value_positions")
        for name, array in zip(names, lines, strict=True):
            address, strides = look(array)
            setattr(call, name, address)
            if name.endswith("positions"):
                setattr(call, f"{name}_at", strides[0])
    return call


def call_native(call: Call, precision: str, *, backward: bool) -> None:
    """Run the kernel in ``"float"`` or ``"double"``; the memory that ``call`` points to must be held by the caller."""
    library, why = _load(None)
    if library is None:
        raise RuntimeError(why)
    if _Forked.so:
        call.threads = 1
    if getattr(library, f"ia_{'backward' if backward else 'forward'}_{precision}")(ctypes.byref(call)):
        raise MemoryError("the compiled kernel found no memory for its blocks")


class _Forked:
    """Whether this process is a fork of one that had the library: the pool of threads stayed there."""

    so = False

    @classmethod
    def note(cls, library: Any) -> None:
        cls.so = True
        library.ia_one_thread()  # for callers that do not say how many, as XLA


@functools.cache
def _load(headers: str | None) -> tuple[Any, str | None]:
    compiler = next(filter(None, map(shutil.which, filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")))), None)
    if sys.platform not in ("linux", "darwin") or compiler is None:
        return None, "there is no C compiler (cc), which its kernel needs"
    try:
        path = _compiled(compiler, headers)
        _share_threads()
        library = ctypes.CDLL(str(path))
        os.register_at_fork(after_in_child=functools.partial(_Forked.note, library))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: no home directory
        lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        return None, f"its kernel did not compile with {compiler}: {lines[-1] if lines else type(error).__name__}"
    return library, None


def _compiled(compiler: str, headers: str | None = None) -> Path:
    folder = Path(__file__).parent / "native"
    source, include = folder / "attention.c", []
    features = _run([compiler, "-march=native", "-dM", "-E", "-x", "c", os.devnull]).stdout
    digest = hashlib.sha256(f"{features}{COMPILE}{LINK}".encode())
    for name in SOURCES:
        digest.update((folder / name).read_bytes())
    if headers is not None:
        source, include = folder / "jax.c", [f"-I{headers}"]
        digest.update((Path(headers) / "xla/ffi/api/c_api.h").read_bytes())
    cache = Path(os.environ.get("IA_CORE_CACHE") or Path.home() / ".cache" / "indirect-attention")
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = cache / f"native-{digest.hexdigest()[:20]}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=cache) as work:
            _compile([compiler, *include], source, Path(work))
            # Another process may have been as quick; either library is good.
            (Path(work) / "native.so").replace(path)
    return path


def _compile(compiler: list[str], source: Path, work: Path) -> None:
    first = [*compiler, *COMPILE, "-c", str(source), "-o", str(work / "native.o")]
    try:
        _run([*first, "-fopenmp"])
    except subprocess.CalledProcessError:  # one thread is better than none
        _run(first)
    # Without -fopenmp here: the library takes the OpenMP that the process has, in place of a second pool of threads.
    undefined = ["-Wl,-undefined,dynamic_lookup"] if sys.platform == "darwin" else []
    _run([*compiler, *LINK, str(work / "native.o"), "-o", str(work / "native.so"), "-lm", *undefined])


def _run(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, check=True)


def _share_threads() -> None:
    """Make the OpenMP runtime of the process visible to the library; PyTorch's, if it has one of its own."""
    names = ("libgomp", "libiomp5", "libomp")
    found: list[str] = []
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
        found = [line[line.index("/") :] for line in lines if "/" in line]
    loaded = [path for path in dict.fromkeys(found) if Path(path).name.startswith(names)]
    loaded.sort(key=lambda path: "torch" not in path)
    for name in (*loaded, "libgomp.so.1"):
        with contextlib.suppress(OSError):
            ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
            return
