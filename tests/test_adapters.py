"""The adapters of other libraries: the catalogue, and the one backend that Keras has in a process."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

from ia_core.conformance import Implementation
from ia_core.conformance.adapters import BUILTIN, KNOWN_BAD, find, installed, version
from ia_core.conformance.adapters._joined import joined

HERE = installed()
FRAMEWORKS = ("torch", "jax", "onnx", "onnxruntime", "keras", "flax", "openvino", "mlx", "tinygrad")


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"`sdpa` is none of flax, jax-dpa, .*torch-sdpa-math \[IA-X-21\]"):
        find("sdpa")


@pytest.mark.parametrize("name", sorted(BUILTIN))
def test_library_that_is_not_installed_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    with pytest.raises(ValueError, match=rf"`{name}` needs \w+( and \w+)?, not installed here \[IA-X-21\]"):
        BUILTIN[name]()
    assert installed() == installed(every_backend=True) == []


def test_what_is_known_to_be_wrong_is_judged_only_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda module: object())
    assert set(KNOWN_BAD) == {"memory-efficient-attention"} <= set(BUILTIN)
    assert not KNOWN_BAD & set(installed(every_backend=True))


def test_keras_is_offered_on_one_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "keras", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda module: object())

    def offered(every_backend: bool = False) -> list[str]:
        return [name for name in installed(every_backend=every_backend) if name.startswith("keras")]

    for chosen, there in (("jax", ["keras-jax"]), ("torch", ["keras-torch"]), ("tensorflow", [])):
        monkeypatch.setenv("KERAS_BACKEND", chosen)
        assert offered() == offered(every_backend=True) == there
        with pytest.raises(ValueError, match=rf"`keras-numpy` needs Keras on numpy, .* on {chosen}: .* \[IA-X-21\]"):
            find("keras-numpy")
    monkeypatch.delenv("KERAS_BACKEND")
    assert offered() == ["keras-numpy"]
    assert offered(every_backend=True) == ["keras-numpy", "keras-jax", "keras-torch"]
    for name in offered(every_backend=True):  # none is imported yet, so each may be
        assert find(name).name == name


def test_catalogue_imports_no_framework() -> None:
    code = (
        "import os, sys; before = dict(os.environ); from ia_core.conformance.adapters import installed; installed()\n"
        f"assert not set({FRAMEWORKS}) & set(sys.modules) and before == dict(os.environ)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("name", HERE)
def test_entry_has_its_name_and_versions(name: str) -> None:
    implementation = find(name)
    assert isinstance(implementation, Implementation) and implementation.name == name
    assert implementation.dtypes[0] == "float32"
    assert all(len(part.split()) == 2 and part.split()[1][0].isdigit() for part in version(name).split(", "))


@pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="Keras is not installed")
def test_first_call_of_keras_decides() -> None:
    """In a process of its own: the second is called first, so the first is refused."""
    code = (
        "import os; from ia_core.conformance.adapters import _keras, find, installed\n"
        "names = [n for n in installed(every_backend=True) if n.startswith('keras')]\n"
        "find(names[0]), find(names[1])\n"
        "assert _keras.imported(names[1][6:]).config.backend() == names[1][6:] and 'KERAS_BACKEND' not in os.environ\n"
        "assert [n for n in installed() if n.startswith('keras')] == [names[1]]\n"
        "try: find(names[0])\n"
        "except ValueError as error: assert 'IA-X-21' in str(error)\n"
        "else: raise AssertionError(names[0])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)


def test_joined_adds_minus_inf() -> None:
    bias, mask = np.asarray([1.5, 2.5], np.float16), np.asarray([True, False])
    both = joined(bias, mask)
    assert both is not None and both.dtype == np.float16 and both.tolist() == [1.5, -np.inf]
    assert joined(bias, None) is bias and joined(None, None) is None
    assert joined(None, mask, boolean=True) is mask
    alone = joined(None, mask)
    assert alone is not None and alone.tolist() == [0, -np.inf]
