"""`import ia_core` is light: it brings in no framework, and takes little longer than NumPy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FRAMEWORKS = (
    *("array_api_strict", "cubed", "cupy", "dask", "flint", "hypothesis", "jax", "jaxtyping", "keras"),
    *("ml_dtypes", "ndonnx", "onnx", "onnxruntime", "pytest", "rich", "scipy", "tensorflow", "torch"),
)
ALLOWED_SECONDS = 0.3
RUNS = 7


def python(code: str, folder: Path) -> str:
    """What a fresh interpreter prints, started away from the tree."""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_no_framework_is_imported(framework: str, tmp_path: Path) -> None:
    code = f"import ia_core, ia_core.backends, sys; print({framework!r} in sys.modules)"
    assert python(code, tmp_path) == "False"


def test_import_takes_little_longer_than_numpy(tmp_path: Path) -> None:
    # NumPy comes first, so that what is measured is what ia_core adds to it in one and the same process.
    code = "import numpy; from time import process_time as now; t = now(); import ia_core; print(now() - t)"
    python(code, tmp_path)  # compiles the bytecode, once
    # Processor time, and the least of it: what else the machine does adds to a run and never takes away.
    assert min(float(python(code, tmp_path)) for _ in range(RUNS)) < ALLOWED_SECONDS
