"""The wheel carries what the tree has: a folder left out of `packages` would be missing in silence."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = {"ia_core": "ia_core", "backends": "ia_core/backends", "conformance": "ia_core/conformance"}
METADATA = ("pyproject.toml", "README.md", "LICENSE")


def files_of_the_tree() -> set[str]:
    """Python files, the typing marker, the compiled kernel's source, schemas and vectors, by their paths in a wheel."""
    return {
        f"{inside}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, inside in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.suffix == ".py" or path.name == "py.typed" or path.parent.name in ("native", "schemas", "vectors")
    }


def test_wheel_and_tree_hold_the_same_files(tmp_path: Path) -> None:
    # From a copy: setuptools keeps a build folder beside the sources, and would pack what is left in it.
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in METADATA:
        shutil.copy(ROOT / name, tmp_path)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "out", "."]
    done = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (tmp_path / "out").glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        names = {name for name in packed.namelist() if ".dist-info/" not in name}
        meta = {Path(name).name for name in packed.namelist() if ".dist-info/" in name}
    assert names == files_of_the_tree()
    assert "ia_core/py.typed" in names
    assert {"LICENSE", "entry_points.txt", "METADATA"} <= meta
