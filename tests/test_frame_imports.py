"""Who may import whom, read from the syntax trees: design rule of the four folders."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("ia_core", "backends", "conformance")
FILES = sorted(path.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))

STANDARD = frozenset(sys.stdlib_module_names)
SPECIFICATION = frozenset({"array_api_compat", "array_api_extra", "ia_core"})
# The command that draws a figure, if it is asked to.
FIGURES = Path("ia_core/_noise_command.py")
# Random numbers are not in the array API standard: what draws them may use NumPy's.
DRAWS = frozenset(
    {FIGURES, Path("ia_core/_params.py"), Path("ia_core/tasks.py")}
    | {path for path in FILES if path.parent == Path("ia_core/simulate")}
)
SUITE = frozenset({"ia_core", "hypothesis", "ml_dtypes", "numpy", "pytest", "rich"})
# An adapter that is not listed here adapts the library of its own name.
ADAPTED = {
    "_flax": {"flax", "jax"},
    "_memory_efficient": {"memory_efficient_attention"},
    "_onnxruntime": {"onnx", "onnxruntime"},
}
# The one file of the suite that carries arrays from NumPy to the library under test, and back.
CARRIER = Path("conformance/_libraries.py")
CARRIED = frozenset({"array_api_strict", "cupy", "jax", "torch"})
FRAMEWORK_FILES = {
    "_cubed": {"cubed"},
    "_cupy": {"cupy"},
    "_dask": {"dask"},
    "_dask_sweep": {"distributed"},
    "_jax": {"jax"},
    "_jax_modules": {"jax", "numpy"},
    "_jax_native": {"jax"},
    "_jax_pallas": {"jax"},
    "_jax_parts": {"jax"},
    "_jax_traces": {"jax"},
    "_numpy": {"numpy"},
    "_numpy_native": {"numpy"},
    "_torch": {"torch"},
    "_torch_flex": {"torch"},
    "_torch_diagonals": {"torch"},
    "_torch_line_tiles": {"torch"},
    "_torch_lines": {"torch"},
    "_torch_mesh": {"torch"},
    "_torch_native": {"torch"},
    "_torch_tiled": {"torch"},
    "_pallas_backward": {"jax"},
    "_pallas_forward": {"jax"},
    "_pallas_plan": {"jax"},
    "_pallas_sums": {"jax"},
    "_pallas_tile": {"jax"},
    "_torch_triton": {"torch", "triton"},
    "_torch_triton_lines": {"torch"},
    "_torch_triton_rounded": {"torch"},
    "_triton_backward": {"triton"},
    "_triton_bounded": {"triton"},
    "_triton_call": {"torch", "triton"},
    "_triton_forward": {"triton"},
    "_triton_launch": {"torch"},
    "_triton_lines": {"triton"},
    "_triton_order": {"triton"},
    "_triton_sums": {"triton"},
    "_triton_tile": {"triton"},
    "equinox_module": {"equinox", "jax"},
    "flax_module": {"flax", "jax"},
    "jax_ring": {"jax"},
    "torch_ring": {"torch"},
    "torch_module": {"torch"},
}


class Import:
    """One import: the absolute name of what is imported, and where it stands."""

    def __init__(self, name: str, line: int, in_function: bool, typing_only: bool) -> None:
        self.name, self.line = name, line
        self.in_function, self.typing_only = in_function, typing_only

    @property
    def top(self) -> str:
        return self.name.partition(".")[0]


def imported_as(path: Path) -> str:
    """The name under which a file is imported: ia_core is the one root."""
    parts = path.with_suffix("").parts
    parts = parts if parts[0] == "ia_core" else ("ia_core", *parts)
    return ".".join(part for part in parts if part != "__init__")


def imports_of(source: str, path: Path) -> list[Import]:
    """Every import of a file, with string literals given to `import_module` and `__import__`."""
    module = imported_as(path)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found: list[Import] = []

    def visit(node: ast.AST, in_function: bool, typing_only: bool) -> None:
        for name in _names(node, package):
            found.append(Import(name, node.lineno, in_function, typing_only))
        for field, child in ast.iter_fields(node):
            inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            guarded = isinstance(node, ast.If) and field == "body" and "TYPE_CHECKING" in ast.unparse(node.test)
            for item in child if isinstance(child, list) else [child]:
                if isinstance(item, ast.AST):
                    visit(item, in_function or inside, typing_only or guarded)

    visit(ast.parse(source), False, False)
    return found


def _names(node: ast.AST, package: str) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        stem = ".".join([*base, *([node.module] if node.module else [])])
        return [f"{stem}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
        given = [argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)]
        names = [name for name in given if isinstance(name, str)]
        return [f"{package}{name}" if name.startswith(".") else name for name in names]
    return []


def violations(source: str, path: Path) -> list[str]:
    """What a file imports against the rules, in words."""
    return [
        f"{path}:{one.line} imports {one.name}: {rule}"
        for one in imports_of(source, path)
        if one.top not in STANDARD and (rule := _broken_rule(one, path))
    ]


def _broken_rule(one: Import, path: Path) -> str | None:
    if one.typing_only and one.top == "jaxtyping":
        return None
    folder = path.parts[0]
    if folder == "ia_core":
        return _broken_in_specification(one, path)
    if one.name.startswith("ia_core.") and one.name.split(".")[1] == _other(folder):
        return f"{folder} may not import {_other(folder)}"
    if folder == "backends":
        own = {"ia_core", *FRAMEWORK_FILES.get(path.stem, ())}
        return None if one.top in own else f"this file of backends may import only {sorted(own)}"
    return _broken_in_suite(one, path)


def _broken_in_specification(one: Import, path: Path) -> str | None:
    if one.name.startswith(("ia_core.backends", "ia_core.conformance")):
        command = path == Path("ia_core/_cli.py") and one.in_function
        return None if command else "only the command, inside its functions, may import this"
    if one.top == "matplotlib" and path == FIGURES and one.in_function:
        return None
    allowed = SPECIFICATION | ({"numpy"} if path in DRAWS else set())
    return None if one.top in allowed else f"the specification may import only {sorted(allowed)}"


def _broken_in_suite(one: Import, path: Path) -> str | None:
    if path == Path("conformance/_oracle.py"):
        return None if one.top in ("flint", "numpy") else "the oracle may import only flint and NumPy"
    if path == CARRIER and one.top not in SUITE:
        own = one.top in CARRIED and one.in_function
        return None if own else f"this file may import only {sorted(CARRIED)}, inside its functions"
    if path.parent == Path("conformance/adapters") and one.top not in SUITE:
        adapted = ADAPTED.get(path.stem, {path.stem.removeprefix("_")})
        own = one.top in adapted and one.in_function
        return None if own else f"this adapter may import only {sorted(adapted)}, inside its functions"
    return None if one.top in SUITE else f"conformance may import only {sorted(SUITE)}"


def _other(folder: str) -> str:
    return {"backends": "conformance", "conformance": "backends"}[folder]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_file_keeps_the_import_rules(path: Path) -> None:
    found = violations((ROOT / path).read_text(encoding="utf-8"), path)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("folder", FOLDERS)
def test_folder_has_files_to_check(folder: str) -> None:
    assert any(path.parts[0] == folder for path in FILES)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("ia_core/_attention.py", "import torch"),
        ("ia_core/_attention.py", "import numpy as np"),
        ("ia_core/_attention.py", "def f():\n    import jax.numpy"),
        ("ia_core/_attention.py", "import importlib\nimportlib.import_module('cupy')"),
        ("ia_core/_attention.py", "__import__('dask.array')"),
        ("ia_core/_attention.py", "from .backends import available"),
        ("ia_core/_attention.py", "from . import conformance"),
        ("ia_core/_attention.py", "if TYPE_CHECKING:\n    import torch"),
        ("ia_core/_attention.py", "if TYPE_CHECKING:\n    from .backends import available"),
        ("ia_core/_attention.py", "import jaxtyping"),
        ("ia_core/_attention.py", "if TYPE_CHECKING:\n    import jaxtyping\nelse:\n    import torch"),
        ("ia_core/_cli.py", "from . import backends"),
        ("backends/_torch.py", "import numpy"),
        ("backends/_tiles.py", "import torch"),
        ("backends/__init__.py", "import importlib\nimportlib.import_module('torch')"),
        ("backends/__init__.py", "from ..conformance import Implementation"),
        ("conformance/_engine.py", "from ..backends import indirect_attention"),
        ("conformance/_engine.py", "import ia_core.backends"),
        ("conformance/_engine.py", "import torch"),
        ("conformance/_libraries.py", "import torch"),
        ("conformance/_libraries.py", "def vjp():\n    import keras"),
        ("conformance/_oracle.py", "from .. import indirect_attention"),
        ("conformance/_oracle.py", "import hypothesis"),
        ("conformance/adapters/_keras.py", "import keras"),
        ("conformance/adapters/_keras.py", "def call():\n    import torch"),
        ("conformance/adapters/_keras.py", "def call():\n    from ...backends import indirect_attention"),
    ],
)
def test_forbidden_import_is_found(path: str, source: str) -> None:
    assert violations(source, Path(path))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("ia_core/_attention.py", "import math\nfrom array_api_compat import device"),
        ("ia_core/_attention.py", "from ._bias import OffsetMLP\nfrom . import _checks"),
        ("ia_core/_attention.py", "if TYPE_CHECKING:\n    from jaxtyping import Float"),
        ("ia_core/_params.py", "import numpy as np"),
        ("ia_core/_cli.py", "def conform():\n    from . import conformance"),
        ("backends/_torch.py", "import torch.nn.functional\nfrom .._checks import check_call"),
        ("backends/__init__.py", "import importlib\nimportlib.import_module('._torch', __name__)"),
        ("conformance/_engine.py", "import hypothesis, pytest\nfrom .. import attention_weights"),
        ("conformance/_libraries.py", "def vjp():\n    import torch"),
        ("conformance/_oracle.py", "import flint\nimport numpy"),
        ("conformance/adapters/_keras.py", "def call():\n    import keras"),
    ],
)
def test_allowed_import_is_let_through(path: str, source: str) -> None:
    assert not violations(source, Path(path))
