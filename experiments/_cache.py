"""Data that take a while to make: kept as one .npz.xz under build/experiments, with a checksum of its arrays."""

from __future__ import annotations

import hashlib
import io
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ._results import CACHE, write_bytes

__all__ = ["cached", "checksum", "read"]

Arrays = dict[str, np.ndarray]


def cached(name: str, make: Callable[[], Arrays]) -> Arrays:
    """The arrays of a name, made if they are not there; damaged files are made again."""
    path: Path = CACHE / f"{name}.npz.xz"
    if path.exists():
        arrays = read(path)
        if str(arrays.pop("checksum", "")) == checksum(arrays):
            return arrays
        print(f"{path} does not have the checksum that it names: made again", flush=True)
    arrays = make()
    file = io.BytesIO()
    np.savez(file, checksum=np.asarray(checksum(arrays)), **arrays)
    write_bytes(path, lzma.compress(file.getvalue(), preset=2))
    return arrays


def read(path: Path) -> Arrays:
    """The arrays of a file; none, if it is no such file any more."""
    try:
        with lzma.open(path) as packed, np.load(io.BytesIO(packed.read())) as kept:
            return {key: kept[key] for key in kept.files}
    except (OSError, EOFError, ValueError, lzma.LZMAError, zipfile.BadZipFile):
        return {}


def checksum(arrays: Arrays) -> str:
    """SHA-256 over names, shapes, dtypes and contents."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.shape} {array.dtype.str}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
