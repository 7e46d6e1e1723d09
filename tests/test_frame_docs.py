"""The site builds without a warning and without a network, and asks no other host for anything."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOWHERE = "http://127.0.0.1:9"  # the discard port: a build that asks for anything is refused at once
# What a browser loads by itself. A link that a reader may click is none of these.
LOADED = {
    ".html": (
        re.compile(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']((?:https?:)?//[^\"']+)"),
        re.compile(r"<link\b(?![^>]*\brel=[\"']canonical\b)[^>]*\bhref=[\"']((?:https?:)?//[^\"']+)"),
    ),
    ".css": (re.compile(r"(?:url\(\s*[\"']?|@import\s+[\"'])((?:https?:)?//[^\"')]+)"),),
}


def loaded_from_elsewhere(site: Path) -> list[str]:
    """Every address outside the site that one of its pages or style sheets loads."""
    return [
        f"{path.relative_to(site)}: {address}"
        for path in sorted(site.rglob("*"))
        if path.suffix in LOADED
        for pattern in LOADED[path.suffix]
        for address in pattern.findall(path.read_text(encoding="utf-8"))
    ]


@pytest.mark.slow  # `make docs-test` builds it with the cells run, and .ci/run calls that
def test_site_builds_and_stands_alone(tmp_path: Path) -> None:
    for extension in ("myst_nb", "sphinx_design", "sphinx_copybutton", "sphinxcontrib.bibtex", "sphinxcontrib.katex"):
        pytest.importorskip(extension, reason=f"{extension} is not installed (extra docs)")
    # From a copy: the API pages are written beside the sources, and a stale one would be a warning.
    docs, site = tmp_path / "docs", tmp_path / "site"
    shutil.copytree(ROOT / "docs", docs, ignore=shutil.ignore_patterns("_build", "api"))
    # `make docs` runs the cells, not this; what only a run can tell is missing, results and the language of a cell.
    asleep = ["-D", "nb_execution_mode=off", "-D", "suppress_warnings=mystnb.glue,myst-nb.glue,myst-nb.lexer"]
    build = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", *asleep, "-b", "html", str(docs), str(site)]
    environment = {**os.environ, **dict.fromkeys(("http_proxy", "https_proxy", "ALL_PROXY"), NOWHERE)}
    done = subprocess.run(build, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (site / "index.html").is_file()
    assert loaded_from_elsewhere(site) == []
    assert "vendor/katex/katex.min.css" in (site / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("a.html", '<script defer src="https://elsewhere.test/x.js"></script>', True),
        ("a.html", '<link rel="stylesheet" href="//elsewhere.test/x.css">', True),
        ("a.html", '<img alt="x" src="http://elsewhere.test/x.png">', True),
        ("a.css", "@import 'https://elsewhere.test/x.css';", True),
        ("a.css", "src: url(https://elsewhere.test/x.woff2)", True),
        ("a.html", '<a href="https://elsewhere.test/">a link</a><img src="_static/x.svg">', False),
        ("a.css", "src: url(fonts/x.woff2)", False),
    ],
)
def test_an_address_outside_the_site_is_found(tmp_path: Path, name: str, text: str, found: bool) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert bool(loaded_from_elsewhere(tmp_path)) is found
