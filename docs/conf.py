"""Sphinx configuration. The site is built and viewed without a network."""

from __future__ import annotations

from ia_core import __version__

project = "indirect-attention"
author = "indirect-attention contributors"
copyright = f"2026, {author}"
version = release = __version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "sphinxcontrib.katex",
]
exclude_patterns = ["_build", "generated"]  # what is generated here is included by pages
templates_path = ["_templates"]
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_typehints = "none"  # the numpydoc sections give types and shapes
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

html_theme = "furo"
html_title = "indirect attention"
html_static_path = ["_static"]
html_theme_options = {"navigation_with_keys": True}

# The extension brings KaTeX's scripts along but links its style sheet elsewhere; ours is in the tree.
katex_css_path = "vendor/katex/katex.min.css"


def skip_tuple_fields(app, what, name, obj, skip, options):
    """Leave out what every NamedTuple has: its docstring lists the fields with their shapes."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def setup(app):
    app.connect("autodoc-skip-member", skip_tuple_fields)
