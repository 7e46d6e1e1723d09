"""A folder served on a loopback port, and the system's own Chromium: no browser is downloaded."""

from __future__ import annotations

import contextlib
import functools
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

__all__ = ["chromium_program", "launched", "served"]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: a request that fails is a fault that whoever looks reports."""


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The origin that serves a folder."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def chromium_program() -> str | None:
    """Where Chromium is, if it is installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextlib.contextmanager
def launched(program: str) -> Iterator[Any]:
    """A browser, driven by Playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        # Containers that build the site often run as root, where Chromium's sandbox does not start.
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()
