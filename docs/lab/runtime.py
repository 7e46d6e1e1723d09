"""What the Python in the browser consists of: originals told by their SHA-256, and the folder that the site serves."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

__all__ = ["FOLDER", "LIBRARY", "LOCK", "NUMPY", "ORIGINALS", "PYODIDE", "is_complete", "write_manifest"]

FOLDER = Path(__file__).parents[1] / "_static" / "pyodide"
MANIFEST = "manifest.json"
PYODIDE = "0.29.1"
NUMPY = "numpy-2.2.5-cp313-cp313-pyodide_2025_0_wasm32.whl"
LIBRARY, LOCK = "python_stdlib.zip", "pyodide-lock.json"

# Later releases of Pyodide name another wheel. That of NumPy is the one that Pyodide's own lock file names.
ORIGINALS = {
    "pyodide.mjs": "20b55bb0d5cb64b8bc81c97f18880cf6f9b7537171d66fe56b0806b7d196f677",
    "pyodide.asm.js": "3e0589486e2119ee0d1f9894151c91a5a7533141d1ed7e824506a2d829861ecd",
    "pyodide.asm.wasm": "38656f8d64b0d24fc24fdfb552ff91baf9b395d3706254eb39a6441bf19f819d",
    LOCK: "701557726114e9a968d2088153414b2f126b8631aa734ed98eaf1797d4e4d087",
    LIBRARY: "b458ddfebbc6298833dbf115d487d53cebe26befd48a042e2d4c0f5d461d6599",
    NUMPY: "2ca46b70661caea8f9f8089d22495c7a24c120fc5881e68934ac3a04d3fc8a02",
}


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_manifest(folder: Path) -> None:
    """Say in a folder which originals its files were made of, and what they are now."""
    files = {path.name: digest(path) for path in sorted(folder.iterdir())}
    text = json.dumps({"originals": ORIGINALS, "files": files}, indent=1)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def is_complete(folder: Path = FOLDER) -> bool:
    """Whether a folder holds what was made of these originals, whole."""
    try:
        told = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        made = told["originals"] == ORIGINALS and set(ORIGINALS) <= set(told["files"])
        return made and all(digest(folder / name) == known for name, known in told["files"].items())
    except (OSError, ValueError, KeyError, TypeError):
        return False
