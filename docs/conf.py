"""Sphinx configuration. The site is built and viewed without a network; cells run in a kernel on loopback."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import ia_core

HERE = Path(__file__).parent

project = "indirect-attention"
author = "indirect-attention contributors"
copyright = f"2026, {author}"
version = release = ia_core.__version__

extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.bibtex",
    "sphinxcontrib.katex",
]
# What is generated here is included by pages. The design notes are for contributors, who read them in the repository.
exclude_patterns = ["_build", "generated", "design-notes.md"]
templates_path = ["_templates"]
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nitpicky = True

autosummary_generate = True
autodoc_typehints = "none"  # the numpydoc sections give types and shapes
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

bibtex_bibfiles = ["references.bib"]
copybutton_exclude = ".linenos, .gp, .go"  # prompts and output are not copied

html_theme = "furo"
html_title = "indirect attention"
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_theme_options = {"navigation_with_keys": True}

# The extension brings KaTeX's scripts along but links its style sheet elsewhere; ours is in the tree.
katex_css_path = "vendor/katex/katex.min.css"

# The laboratory: live pages, and cells that can be edited.
sys.path.insert(0, str(HERE))
extensions.append("lab.sphinx_lab")


def fingerprint() -> str:
    """Of the code that pages compute with: a page that is unchanged is stale all the same once this is another."""
    package = Path(ia_core.__file__).parent
    folders = [package, package.parent / "backends", package.parent / "conformance", HERE / "book"]
    text = hashlib.sha256()
    for path in sorted(path for folder in folders for path in folder.rglob("*.py")):
        text.update(path.read_bytes())
    return text.hexdigest()[:16]


nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE / "_build" / "cells" / fingerprint())
nb_execution_timeout = 60
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True  # what a cell prints is one block, however slowly it prints
nb_ipywidgets_js = {}  # they would be loaded from elsewhere
nb_code_prompt_show = "Show the answer"  # hide-cell is for answers of exercises alone
nb_code_prompt_hide = "Hide the answer"
# One thread each: cells are small, and pages are built beside other work.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def skip_tuple_fields(app, what, name, obj, skip, options):
    """Leave out what every NamedTuple has: its docstring lists the fields with their shapes."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def one_id_each(app, doctree, docname):
    """Take the id of a formula off the formula: the theme wraps it in a box that has the same."""
    for box in doctree.findall(lambda node: "math-wrapper" in getattr(node, "attributes", {}).get("classes", ())):
        for formula in box.children:
            formula["ids"] = []


def accessible(app, pagename, templatename, context, doctree):
    """Say the level of a heading in the table of contents, and let the keyboard scroll what the mouse can."""
    for name in ("body", "furo_navigation_tree"):
        text = context.get(name) or ""
        text = text.replace('role="heading"', 'role="heading" aria-level="2"').replace("<pre>", '<pre tabindex="0">')
        for box in ("math-wrapper", "table-wrapper"):
            text = text.replace(f'<div class="{box}', f'<div tabindex="0" class="{box}')
        context[name] = text


def setup(app):
    app.connect("autodoc-skip-member", skip_tuple_fields)
    app.connect("doctree-resolved", one_id_each)
    app.connect("html-page-context", accessible, priority=900)  # after the theme
