"""Edit and run: the code cells of a page, executed one after the other in a namespace of their own."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import sys
import traceback
from collections.abc import Iterator, Mapping
from types import MappingProxyType, ModuleType
from typing import Any

__all__ = ["lacking", "run"]

# What a cell of the book may import and a browser has not, by the name that a reader knows it under.
ABSENT = {
    "torch": "PyTorch",
    "jax": "JAX",
    "matplotlib": "Matplotlib",
    "_kit": "Matplotlib",  # the book's figures
    "ia_core.conformance": "the conformance suite",
    "cupy": "CuPy",
    "dask": "Dask",
    "flint": "python-flint",
    "hypothesis": "Hypothesis",
    "pytest": "pytest",
}


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Run the last of ``cells`` after all that stand above it.

    A cell is ``{"code": text, "number": int or None}``, the number being that on the page, None for a cell whose code
    the page does not show. Returns ``output``, what the last cell printed and the value of its last expression;
    ``error``, where it or one above failed, in Python's words; and ``notes``, one line for each cell shown above that
    was left out because it needs what a browser has not.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    notes: list[str] = []
    undefined: dict[str, str] = {}  # what cells that were left out would have defined, and what these needed
    _stand_in_for_glue()
    *above, asked = request["cells"]
    for cell in above:
        code, name = cell["code"], f"cell {cell['number']}" if cell["number"] else "a hidden cell"
        needs = lacking(code, undefined)
        if needs:
            undefined |= dict.fromkeys(_names(code, ast.Store), needs)
            if cell["number"]:
                notes.append(f"{name.capitalize()} was left out: it needs {needs}, which the browser does not have.")
            continue
        _, error = _execute(code, name, names)
        if error:
            return {"output": "", "error": f"{name.capitalize()} above failed.\n{error}", "notes": notes}
        undefined = {lost: why for lost, why in undefined.items() if lost not in names}
    needs = lacking(asked["code"], undefined)
    if needs:
        return {"output": "", "error": f"This cell needs {needs}, which the browser does not have.", "notes": []}
    output, error = _execute(asked["code"], "this cell", names)
    return {"output": output, "error": error, "notes": notes}


def lacking(cell: str, undefined: Mapping[str, str] = MappingProxyType({})) -> str:
    """What a cell needs that is not here, as a list in words; empty if it can run.

    It needs what it imports, and what cells needed that would have defined the names that it uses.
    """
    imported = set(_imported(cell))
    tops = {top for top in ABSENT for name in imported if name == top or name.startswith(f"{top}.")}
    needs = {ABSENT[top] for top in tops if importlib.util.find_spec(top) is None}
    used = _names(cell, ast.Load) - _names(cell, ast.Store)
    return ", ".join(sorted(needs | {undefined[name] for name in used & set(undefined)}))


def _imported(cell: str) -> Iterator[str]:
    """The modules that a cell imports, and the drawing kit wherever a cell uses it: one cell imports it for all."""
    for node in _nodes(cell):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{one.name}" for one in node.names)
        elif isinstance(node, ast.Name) and node.id == "_kit":
            yield node.id


def _names(cell: str, kind: type[ast.expr_context]) -> set[str]:
    """The names that a cell uses (Load) or defines (Store)."""
    found = {node.id for node in _nodes(cell) if isinstance(node, ast.Name) and isinstance(node.ctx, kind)}
    if kind is ast.Store:
        for node in _nodes(cell):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                found |= {(one.asname or one.name).partition(".")[0] for one in node.names}
    return found


def _nodes(cell: str) -> list[ast.AST]:
    """The syntax tree; empty for what is no Python, which is told when the cell runs."""
    try:
        return list(ast.walk(ast.parse(cell)))
    except SyntaxError:
        return []


def _execute(cell: str, name: str, names: dict[str, Any]) -> tuple[str, str]:
    """What a cell prints, with the value of its last expression, and its error."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            body = ast.parse(cell, name)
            last = body.body.pop() if body.body and isinstance(body.body[-1], ast.Expr) else None
            exec(compile(body, name, "exec"), names)
            shows = last is not None and not cell.rstrip().endswith(";")
            if last is not None:
                value = eval(compile(ast.Expression(last.value), name, "eval"), names)
                if shows and value is not None:
                    print(repr(value))
    except (Exception, SystemExit) as error:
        return printed.getvalue(), _told(error, name)
    return printed.getvalue(), ""


def _told(error: BaseException, name: str) -> str:
    """The error and the lines of the cell that led to it, without the machinery around."""
    lines = [f"line {one.lineno}" for one in traceback.extract_tb(error.__traceback__) if one.filename == name]
    where = f" ({name}, {lines[-1]})" if lines else ""
    return "".join(traceback.format_exception_only(error)).rstrip() + where


def _stand_in_for_glue() -> None:
    """``glue`` of MyST-NB puts a number into the page's text; here there is no text to put it into."""
    if "myst_nb" not in sys.modules and importlib.util.find_spec("myst_nb") is None:
        module = ModuleType("myst_nb")
        module.glue = lambda name, value, display=True: None  # type: ignore[attr-defined]
        sys.modules["myst_nb"] = module
