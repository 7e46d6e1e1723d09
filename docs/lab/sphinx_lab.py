"""The laboratory in the site: its pages' HTML, the sources that run in the browser, and the cells that can be edited.

``{lab} explorer`` in a page puts in the page of that name. The sources are packed when the site is written; the Python
runtime is among the static files if `make lab-runtime` fetched it, and the site is whole without it.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import array_api_compat
from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

import ia_core
import ia_core.backends

from .pages import PAGES
from .runtime import is_complete

__all__ = ["Lab", "pack", "setup"]

MOMENT = (2026, 1, 1, 0, 0, 0)  # equal sources make equal archives
HERE = Path(__file__).parent
# Of this folder, what the browser imports.
MODULES = (
    "__init__",
    "alignment",
    "alignment_figure",
    "calls",
    "cells",
    "controls",
    "explorer",
    "explorer_figure",
    "fragments",
)


class Lab(Directive):
    """``{lab} NAME``: a live page, with its figure as it is when the page opens."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        if name not in PAGES:
            raise self.error(f"`lab` must be one of {', '.join(PAGES)}; got {name}")
        environment = self.state.document.settings.env
        environment.note_reread()  # the figure comes from sources that Sphinx does not know
        environment.metadata.setdefault(environment.docname, {})["lab"] = name
        return [nodes.raw("", PAGES[name](environment.app.config.lab_runtime), format="html")]


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_config_value("lab_runtime", is_complete(Path(app.srcdir) / "_static" / "pyodide"), "env", bool)
    app.add_directive("lab", Lab)
    app.connect("html-page-context", _add_scripts)
    app.connect("build-finished", _write_sources)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def pack(path: Path) -> None:
    """Write the archive that the worker unpacks: the specification, what it depends on, and the laboratory."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as packed:
        for name, source in sorted(_sources()):
            packed.writestr(zipfile.ZipInfo(name, MOMENT), source.read_bytes(), zipfile.ZIP_DEFLATED)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_bytes(held.getvalue())
    beside.replace(path)


def _sources() -> Iterator[tuple[str, Path]]:
    folders = {"ia_core": ia_core, "ia_core/backends": ia_core.backends, "array_api_compat": array_api_compat}
    for inside, package in folders.items():
        folder = Path(package.__file__ or "").parent
        for path in folder.rglob("*.py"):
            yield f"{inside}/{path.relative_to(folder).as_posix()}", path
    for name in MODULES:
        yield f"lab/{name}.py", HERE / f"{name}.py"
    # Its wheel has none.
    yield "array_api_compat/LICENSE", HERE.parent / "_static" / "vendor" / "array_api_compat" / "LICENSE"


def _write_sources(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.format == "html":
        target = Path(app.outdir) / "_static" / "lab"
        target.mkdir(parents=True, exist_ok=True)
        pack(target / "sources.zip")


def _add_scripts(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Each page gets the scripts that it needs, and no other."""
    name = app.env.metadata.get(page, {}).get("lab")
    if name:
        app.add_css_file("lab/lab.css")
        app.add_js_file(f"lab/{name}.js", type="module")
        return
    cells = _cells(app, page) if doctree is not None and app.config.lab_runtime else []
    if any(cell["number"] for cell in cells):
        app.add_css_file("lab/lab.css")
        app.add_js_file("lab/cells.js", type="module")
        text = json.dumps(cells).replace("<", "\\u003c")
        context["body"] += f'<script type="application/json" id="lab-cells" data-runtime="yes">{text}</script>'


def _cells(app: Sphinx, page: str) -> list[dict[str, Any]]:
    """The code cells of a page in its order; those that the page shows are numbered."""
    if "myst_nb" not in app.config.extensions:
        return []
    from myst_nb.core.read import read_myst_markdown_notebook  # only a site that has cells needs it

    path = Path(str(app.env.doc2path(page)))
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".md" or "{code-cell}" not in text:
        return []
    hidden = {"remove-cell", "remove-input"}
    found, number = [], 0
    for cell in read_myst_markdown_notebook(text, path=str(path)).cells:
        if cell.cell_type == "code":
            shown = not hidden & set(cell.metadata.get("tags", ()))
            number += shown
            found.append({"code": cell.source, "number": number if shown else None})
    return found
