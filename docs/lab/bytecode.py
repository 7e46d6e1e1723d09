"""Archives of Python modules as archives of their bytecode: a browser that need not compile them starts sooner.

Runs in the Python that will import the archives, for bytecode is of one version: bytecode.mjs runs it in Pyodide.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import marshal
import zipfile
from pathlib import Path

__all__ = ["compile_archive", "compile_runtime"]

UNCHECKED = 1  # flag of bytecode that no source is compared with, as there is none
# Nothing that a program imports.
LEFT_OUT = (".a", ".c", ".h", ".pxd", ".pyi", ".pyx")


def compile_runtime(originals: Path, into: Path, library: str, wheel: str, lock: str) -> None:
    """Write the standard library and a package's wheel as bytecode, and the lock file that names the new wheel."""
    compile_archive(originals / library, into / library, "/lib/python313.zip")
    compile_archive(originals / wheel, into / wheel, "/lib/python3.13/site-packages")
    told = json.loads((originals / lock).read_text(encoding="utf-8"))
    kept = {name: one for name, one in told["packages"].items() if one["file_name"] == wheel}
    for one in kept.values():
        one["sha256"] = hashlib.sha256((into / wheel).read_bytes()).hexdigest()
    (into / lock).write_text(json.dumps({**told, "packages": kept}), encoding="utf-8")


def compile_archive(source: Path, target: Path, place: str) -> None:
    """An archive with ``x.pyc`` in the place of ``x.py``; ``place`` is where it will be imported from."""
    with zipfile.ZipFile(source) as read, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as written:
        for one in read.infolist():
            if one.filename.endswith(LEFT_OUT):
                continue
            content = read.read(one)
            name = one.filename
            if name.endswith(".py"):
                content, name = _bytecode(content, f"{place}/{name}"), f"{name}c"
            written.writestr(zipfile.ZipInfo(name, one.date_time), content, zipfile.ZIP_DEFLATED)


def _bytecode(source: bytes, name: str) -> bytes:
    code = compile(source, name, "exec", dont_inherit=True)
    head = importlib.util.MAGIC_NUMBER + UNCHECKED.to_bytes(4, "little") + importlib.util.source_hash(source)
    return head + marshal.dumps(code)
