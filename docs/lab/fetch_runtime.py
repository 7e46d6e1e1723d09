"""Fetch the Python that runs in the browser into docs/_static/pyodide: Pyodide and its build of NumPy.

    python docs/lab/fetch_runtime.py [SOURCE ...]

Without a source, Pyodide comes from its npm package and NumPy's wheel out of a package on PyPI that carries it. A
source is a folder, an archive (.tar.*, .tgz, .zip, .whl), a file, or the http(s) address of one of these. Whatever it
is, a file is taken if its SHA-256 is the pinned one, so it does not matter who gave it. Where there is Node, it runs
the Pyodide that came to compile the modules, which the browser would do at every start. The folder is complete or not
there: it is filled beside its place and then renamed.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

sys.path.insert(0, str(Path(__file__).parents[1]))

from lab.runtime import FOLDER, LIBRARY, LOCK, NUMPY, ORIGINALS, PYODIDE, is_complete, write_manifest

# gbdraw draws genomes; what matters here is that it ships the official wheel of NumPy for Pyodide.
CARRIER = "gbdraw==0.14.2"
LARGEST = 64 * 2**20  # bytes of a file that is looked at: none of ours is larger
NOTICE = """\
What stands here was fetched by docs/lab/fetch_runtime.py and is not part of the project's sources.

Pyodide {version}: Mozilla Public License 2.0. Source: github.com/pyodide/pyodide, tag {version}.
  It contains CPython 3.13.2 (Python Software Foundation License) and the Emscripten runtime (MIT).
NumPy 2.2.5: BSD 3-Clause; the licence stands in the wheel, below numpy-2.2.5.dist-info.

The standard library and the wheel hold bytecode in the place of sources where manifest.json has other SHA-256 for them
than for their originals.
"""


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*", metavar="SOURCE", help="where to look instead of npm and PyPI")
    parser.add_argument("--into", type=Path, default=FOLDER, help="the folder to fill")
    options = parser.parse_args(words)
    try:
        fetch(options.sources, options.into)
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing was changed", file=sys.stderr)
        return 130
    return 0


def fetch(sources: list[str], into: Path) -> None:
    """Fill a folder with all files, or raise and leave it as it was."""
    if is_complete(into):
        print(f"{into} is complete")
        return
    into.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".pyodide-", dir=into.parent) as scratch:
        work = Path(scratch)
        originals, new = work / "originals", work / "new"
        originals.mkdir()
        new.mkdir()
        for source in sources or ["npm", "pypi"]:
            if _missing(originals):
                print(f"looking in {source} ...", flush=True)
                _collect(_opened(source, work), originals)
        lacking = _missing(originals)
        if lacking:
            raise RuntimeError(f"no source has {', '.join(lacking)} with the pinned SHA-256")
        make(originals, new)
        (new / "NOTICE.txt").write_text(NOTICE.format(version=PYODIDE), encoding="utf-8")
        write_manifest(new)
        if into.exists():
            into.rename(work / "old")
        new.rename(into)
    print(f"{into} is complete")


def make(originals: Path, into: Path) -> None:
    """What the site serves: the originals, and bytecode of those that are Python where Node can run Pyodide for it."""
    script, why = Path(__file__).with_name("bytecode.mjs"), "is not installed"
    if shutil.which("node") is not None:
        print("compiling Python's modules ...", flush=True)
        ended = subprocess.run(["node", script, originals, into, LIBRARY, NUMPY, LOCK], check=False)
        why = f"ended with {ended.returncode}" if ended.returncode else ""
    if why:
        print(f"node {why}: the modules stay as they are, and the browser compiles them at every start")
    for name in ORIGINALS:
        if why or not (into / name).is_file():
            shutil.copyfile(originals / name, into / name)


def _missing(folder: Path) -> list[str]:
    return [name for name in ORIGINALS if not (folder / name).is_file()]


def _opened(source: str, work: Path) -> Path:
    """A source as a path on this machine."""
    place = Path(tempfile.mkdtemp(dir=work))
    if source == "npm":
        _call("npm", "pack", "--silent", f"pyodide@{PYODIDE}", at=place)
    elif source == "pypi":
        _call(sys.executable, "-m", "pip", "-q", "download", "--no-deps", "--only-binary=:all:", CARRIER, at=place)
    elif source.startswith(("http://", "https://")):
        target = place / (PurePosixPath(source.partition("?")[0]).name or "download")
        with urllib.request.urlopen(source, timeout=60) as answer, target.open("wb") as file:
            shutil.copyfileobj(answer, file)
    elif Path(source).exists():
        return Path(source)
    else:
        raise RuntimeError(f"`SOURCE` must be npm, pypi, a path or an http(s) address; got {source}")
    return place


def _call(*command: str, at: Path) -> None:
    if shutil.which(command[0]) is None:
        raise RuntimeError(f"{command[0]} is not installed; name another SOURCE for what it would have fetched")
    subprocess.run(command, cwd=at, check=True, stdout=subprocess.DEVNULL)


def _collect(source: Path, into: Path) -> None:
    """Write every pinned file that a source holds, under whatever name it holds it."""
    wanted = {ORIGINALS[name]: name for name in _missing(into)}
    for content in _contents(source):
        name = wanted.pop(hashlib.sha256(content).hexdigest(), None)
        if name is not None:
            (into / name).write_bytes(content)
        if not wanted:
            return


def _contents(path: Path) -> Iterator[bytes]:
    """The content of a file, of every file below a folder, and of every file of an archive."""
    if path.is_dir():
        for below in sorted(path.rglob("*")):
            if below.is_file():
                yield from _contents(below)
        return
    if path.stat().st_size <= LARGEST:
        yield path.read_bytes()
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as packed:
            yield from (packed.read(one) for one in packed.infolist() if 0 < one.file_size <= LARGEST)
    elif tarfile.is_tarfile(path):
        with tarfile.open(path) as tarred:
            for one in tarred:
                file = tarred.extractfile(one) if one.isfile() and one.size <= LARGEST else None
                if file is not None:
                    yield file.read()


if __name__ == "__main__":
    sys.exit(main())
