"""Checksums of the data that the results were made from, kept beside the results."""

from __future__ import annotations

import json
from pathlib import Path

from .._cache import ABOUT, checksum, read
from .._results import CACHE, write_bytes

__all__ = ["checksums", "table_of"]


def checksums(path: Path) -> dict[str, dict[str, str]]:
    """Name to checksum and versions, from a file that is brought up to date with what the cache holds."""
    known: dict[str, dict[str, str]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for file in sorted(CACHE.glob("*.npz.xz")):
        name = file.name.removesuffix(".npz.xz")
        if "quick" in name or known.get(name, {}).get("file") == str(file.stat().st_size):
            continue
        arrays = read(file)
        found = checksum({key: array for key, array in arrays.items() if key not in ABOUT})
        if known.get(name, {}).get("sha256") != found:
            made_with = str(arrays.get("made_with", "not recorded"))
            known[name] = {"sha256": found, "file": str(file.stat().st_size), "made with": made_with}
    if known:
        write_bytes(path, (json.dumps(known, indent=1, sort_keys=True) + "\n").encode())
    return known


def table_of(known: dict[str, dict[str, str]]) -> list[list[str]]:
    """Rows of name, checksum and versions."""
    return [[f"`{name}`", f"`{one['sha256'][:16]}`", one["made with"]] for name, one in sorted(known.items())]
