"""Checksums of the data that the results were made from, kept beside the results."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from pathlib import Path

from .._cache import checksum, read
from .._results import CACHE, write_bytes

__all__ = ["checksums", "table_of", "versions"]

MAKERS = ("numpy", "matplotlib", "pillow", "scikit-image", "scikit-learn", "espeakng-loader")


def checksums(path: Path) -> dict[str, dict[str, str]]:
    """Name to checksum and versions, from a file that is brought up to date with what the cache holds."""
    known: dict[str, dict[str, str]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for file in sorted(CACHE.glob("*.npz.xz")):
        name = file.name.removesuffix(".npz.xz")
        if "quick" in name or known.get(name, {}).get("file") == str(file.stat().st_size):
            continue
        arrays = read(file)
        arrays.pop("checksum", None)
        found = checksum(arrays)
        if known.get(name, {}).get("sha256") != found:
            known[name] = {"sha256": found, "file": str(file.stat().st_size), "made with": versions()}
    if known:
        write_bytes(path, (json.dumps(known, indent=1, sort_keys=True) + "\n").encode())
    return known


def table_of(known: dict[str, dict[str, str]]) -> list[list[str]]:
    """Rows of name, checksum and versions."""
    return [[f"`{name}`", f"`{one['sha256'][:16]}`", one["made with"]] for name, one in sorted(known.items())]


def versions() -> str:
    """Python and the packages that make data, as far as they are installed."""
    found = [f"python {platform.python_version()}"]
    for name in MAKERS:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)
