"""Data that take a while to make: kept as one .npz.xz under build/experiments, with a checksum of its arrays."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import lzma
import platform
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ._results import CACHE, write_bytes

__all__ = ["cached", "checksum", "read", "versions"]

Arrays = dict[str, np.ndarray]
MAKERS = ("numpy", "matplotlib", "pillow", "scikit-image", "scikit-learn", "espeakng-loader")
ABOUT = ("checksum", "made_with")  # of the other arrays of a file


def cached(name: str, make: Callable[[], Arrays]) -> Arrays:
    """The arrays of a name, made if they are not there; damaged files are made again."""
    path: Path = CACHE / f"{name}.npz.xz"
    if path.exists():
        kept = read(path)
        arrays = {name: array for name, array in kept.items() if name not in ABOUT}
        if str(kept.get("checksum", "")) == checksum(arrays):
            return arrays
        print(f"{path} does not have the checksum that it names: made again", flush=True)
    arrays = make()
    file = io.BytesIO()
    np.savez(file, checksum=np.asarray(checksum(arrays)), made_with=np.asarray(versions()), **arrays)
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


def versions() -> str:
    """Python and the packages that make data, as far as they are installed."""
    found = [f"python {platform.python_version()}"]
    for name in MAKERS:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)
