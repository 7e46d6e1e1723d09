"""Edit and run: the code cells of a page, executed one after the other in a namespace of their own."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import re
import sys
import traceback
import types
from typing import Any

__all__ = ["lacking", "run"]

# What a cell of the book may import and a browser has not, by the name that a reader knows it under.
ABSENT = {
    "torch": "PyTorch",
    "jax": "JAX",
    "matplotlib": "Matplotlib",
    "_kit": "Matplotlib",  # the book's figures
    "tensorflow": "TensorFlow",
    "cupy": "CuPy",
    "dask": "Dask",
    "flint": "python-flint",
    "hypothesis": "Hypothesis",
    "pytest": "pytest",
}
_IMPORT = re.compile(r"^\s*(?:import|from)\s+([\w.]+)", re.MULTILINE)


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Run the last of ``cells`` after all that stand above it.

    A cell is ``{"code": text, "number": int or None}``, the number being that on the page, None for a cell whose code
    the page does not show. Returns ``output``, what the last cell printed and the value of its last expression;
    ``error``, where it or one above failed, in Python's words; and ``notes``, one line for each cell shown above that
    was left out because it needs what a browser has not.
    """
    *above, asked = request["cells"]
    needs = lacking(asked["code"])
    if needs:
        return {"output": "", "error": f"This cell needs {needs}, which the browser does not have.", "notes": []}
    names: dict[str, Any] = {"__name__": "__main__"}
    notes: list[str] = []
    _stand_in_for_glue()
    for cell in above:
        name = f"cell {cell['number']}" if cell["number"] else "a hidden cell"
        needs = lacking(cell["code"])
        if needs and cell["number"]:
            notes.append(f"{name.capitalize()} was left out: it needs {needs}, which the browser does not have.")
        if needs:
            continue
        _, error = _execute(cell["code"], name, names)
        if error:
            return {"output": "", "error": f"{name.capitalize()} above failed.\n{error}", "notes": notes}
    output, error = _execute(asked["code"], "this cell", names)
    return {"output": output, "error": error, "notes": notes}


def lacking(cell: str) -> str:
    """What a cell imports that cannot be imported here, as a list in words; empty if it can run."""
    tops = {name.partition(".")[0] for name in _IMPORT.findall(cell)}
    absent = [ABSENT[top] for top in sorted(tops & set(ABSENT)) if importlib.util.find_spec(top) is None]
    return ", ".join(absent)


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
        module = types.ModuleType("myst_nb")
        module.glue = lambda name, value, display=True: None  # type: ignore[attr-defined]
        sys.modules["myst_nb"] = module
