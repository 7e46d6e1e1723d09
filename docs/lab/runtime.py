"""What the Python in the browser consists of: files by name, each told by its SHA-256."""

from __future__ import annotations

import hashlib
from pathlib import Path

__all__ = ["FILES", "FOLDER", "NUMPY", "PYODIDE", "is_complete", "missing"]

FOLDER = Path(__file__).parents[1] / "_static" / "pyodide"
PYODIDE = "0.29.1"
NUMPY = "numpy-2.2.5-cp313-cp313-pyodide_2025_0_wasm32.whl"

# Later releases of Pyodide name another wheel. That of NumPy is the one that Pyodide's own lock file names.
FILES = {
    "pyodide.mjs": "20b55bb0d5cb64b8bc81c97f18880cf6f9b7537171d66fe56b0806b7d196f677",
    "pyodide.asm.js": "3e0589486e2119ee0d1f9894151c91a5a7533141d1ed7e824506a2d829861ecd",
    "pyodide.asm.wasm": "38656f8d64b0d24fc24fdfb552ff91baf9b395d3706254eb39a6441bf19f819d",
    "pyodide-lock.json": "701557726114e9a968d2088153414b2f126b8631aa734ed98eaf1797d4e4d087",
    "python_stdlib.zip": "b458ddfebbc6298833dbf115d487d53cebe26befd48a042e2d4c0f5d461d6599",
    NUMPY: "2ca46b70661caea8f9f8089d22495c7a24c120fc5881e68934ac3a04d3fc8a02",
}


def missing(folder: Path = FOLDER) -> list[str]:
    """The files that a folder lacks, or has with another content."""
    return [name for name, digest in FILES.items() if not _holds(folder / name, digest)]


def is_complete(folder: Path = FOLDER) -> bool:
    """Whether the browser can run Python from a folder."""
    return not missing(folder)


def _holds(path: Path, digest: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == digest
