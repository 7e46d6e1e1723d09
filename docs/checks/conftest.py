"""The built site on a loopback port, and Chromium to look at it with. `make docs-test` builds first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .serving import chromium_program, launched, served

ROOT = Path(__file__).parents[2]
SITE = ROOT / "docs" / "_build" / "html"
SHOTS = ROOT / "build" / "screenshots"


def pages() -> list[str]:
    """Every page of the site by its address; listings of source are Sphinx's own and are left out."""
    found = (path.relative_to(SITE) for path in SITE.rglob("*.html"))
    return sorted(path.as_posix() for path in found if path.parts[0] != "_modules")


@pytest.fixture(scope="session")
def site() -> Iterator[str]:
    """The origin that serves the site."""
    if not (SITE / "index.html").is_file():
        pytest.skip("the site is not built: make docs")
    with served(SITE) as origin:
        yield origin


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """The system's own Chromium."""
    program = chromium_program()
    if program is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (extra browser)")
    with launched(program) as chromium:
        yield chromium
