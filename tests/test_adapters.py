"""The adapters of other libraries: the catalogue, a quick judgement of each, and each declared deviation by itself."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import ml_dtypes  # noqa: F401 - gives NumPy the dtype bfloat16
import numpy as np
import pytest

from ia_core.conformance import CLAUSES, judge
from ia_core.conformance.adapters import BUILTIN, _keras, find, installed, version

HERE = installed()
CHOSEN = "KERAS_BACKEND" in os.environ  # by the person, or by test_keras_on_another_backend
EMPTIED = np.zeros((1, 1, 1, 2), bool)  # the mask of one row and two keys that allows neither
FIRST = np.asarray([[[[True, False]]]])
UNIT = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
HALVES = {"IA-P-03": "float16", "IA-P-04": "bfloat16"}

Example = Callable[[str, str], None]  # of the name of an adapter and the label of a clause
SHOWN: dict[tuple[str, str], Example] = {}


def shows(labels: str, *names: str) -> Callable[[Example], Example]:
    """Register an example that shows, without the suite, why adapters declare deviations from clauses."""

    def register(example: Example) -> Example:
        SHOWN.update({(name, label): example for name in names for label in labels.split()})
        return example

    return register


# ---------------------------------------------------------------------------------------------- catalogue


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"`sdpa` is none of jax-dpa, .*torch-sdpa-math \[IA-X-21\]"):
        find("sdpa")


@pytest.mark.parametrize("name", sorted(BUILTIN))
def test_library_that_is_not_installed_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    with pytest.raises(ValueError, match=rf"`{name}` needs \w+( and \w+)?, not installed here \[IA-X-21\]"):
        BUILTIN[name]()
    assert installed() == []


def test_keras_is_offered_on_one_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "keras", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda module: object())
    for chosen, offered in (("jax", ["keras-jax"]), ("torch", ["keras-torch"]), ("tensorflow", [])):
        monkeypatch.setenv("KERAS_BACKEND", chosen)
        assert [name for name in installed() if name.startswith("keras")] == offered
        with pytest.raises(ValueError, match=rf"`keras-numpy` needs Keras on numpy, .* on {chosen}: .* \[IA-X-21\]"):
            find("keras-numpy")
    monkeypatch.delenv("KERAS_BACKEND")
    assert [name for name in installed() if name.startswith("keras")] == ["keras-numpy"]


def test_catalogue_imports_no_framework() -> None:
    code = (
        "import os, sys; before = dict(os.environ); from ia_core.conformance.adapters import installed; installed()\n"
        "assert not {'torch', 'jax', 'onnx', 'onnxruntime', 'keras'} & set(sys.modules) and before == dict(os.environ)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("name", HERE)
def test_entry_has_its_name_and_versions(name: str) -> None:
    implementation = find(name)
    assert implementation.name == name
    assert implementation.dtypes[0] == "float32"
    assert all(len(part.split()) == 2 and part.split()[1][0].isdigit() for part in version(name).split(", "))


# ---------------------------------------------------------------------------------------------- judgement


@pytest.mark.parametrize("name", HERE)
def test_only_declared_deviations_and_all_of_them(name: str) -> None:
    implementation, clauses, seeds = find(name), list(CLAUSES.values()), (0, 1)
    if CHOSEN and name.startswith("keras"):  # it passes the call on to a function that is judged in full
        clauses = [one for one in clauses if one.family == "F" or one.label in implementation.deviations]
        seeds = (0,)
    verdicts = [judge(implementation, clause, seed=seed) for seed in seeds for clause in clauses]
    bad = [f"{one.outcome} {one.label}: {one.reason} on {one.case}" for one in verdicts if one.bad]
    assert not bad, "\n".join(bad)
    assert sum(one.outcome == "pass" for one in verdicts) >= len(seeds) * len(clauses) / 4


@pytest.mark.skipif(CHOSEN, reason="Keras is held to one backend")
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_keras_on_another_backend(backend: str) -> None:
    """What of this file has the name of that backend, in a process of its own."""
    if not all(map(importlib.util.find_spec, ("keras", backend))):
        pytest.skip(f"Keras or {backend} is not installed")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", f"keras-{backend}", __file__]
    environment = os.environ | {"KERAS_BACKEND": backend}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-6000:]


@pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="Keras is not installed")
def test_choice_of_keras_is_left_alone() -> None:
    before = os.environ.get("KERAS_BACKEND")
    _keras.imported.cache_clear()
    assert _keras.imported().config.backend() == _keras.backend() == (before or "numpy")
    assert os.environ.get("KERAS_BACKEND") == before


# --------------------------------------------------------------------------------------------- deviations


DECLARED = [(name, label) for name in HERE for label in sorted(find(name).deviations)]


@pytest.mark.filterwarnings("ignore::UserWarning")  # PyTorch says which kernels decline, and what is slow
@pytest.mark.parametrize(("name", "label"), DECLARED)
def test_deviation_by_itself(name: str, label: str) -> None:
    assert (name, label) in SHOWN, "every declared deviation needs an example below"
    SHOWN[name, label](name, label)


def test_every_example_is_of_a_declared_deviation() -> None:
    assert {key for key in SHOWN if key[0] in HERE} == set(DECLARED)


def rounds_to_halves(got: float, dtype: str) -> bool:
    """Whether the difference of two nearly equal weights is off by what rounding them to the dtype costs.

    Scores 0.01 and 0 on values 1 and -1: one rounding of the output would be off by one unit of roundoff.
    """
    want = np.tanh(float(np.asarray(0.01, dtype)) / 2)
    return 8 * UNIT[dtype] < abs(got - want) / want < 1


FUSED = ("torch-sdpa", "torch-sdpa-flash")


def sdpa(name: str, *arrays: Any, **keywords: Any) -> Any:
    from torch.nn.attention import SDPBackend, flex_attention, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    if name == "torch-flex":
        return flex_attention.flex_attention(*arrays, **keywords)
    kernels = {"torch-sdpa-math": SDPBackend.MATH, "torch-sdpa-flash": SDPBackend.FLASH_ATTENTION}
    with sdpa_kernel(kernels[name]) if name in kernels else nullcontext():
        return scaled_dot_product_attention(*arrays, **keywords)


def column(*values: float, dtype: str = "float32") -> Any:
    """A tensor (1, 1, n, 1)."""
    import torch

    return torch.tensor(values, dtype=getattr(torch, dtype)).reshape(1, 1, -1, 1)


@shows("IA-S-06", *FUSED, "torch-sdpa-math")
def torch_nan_behind_the_mask(name: str, label: str) -> None:
    import torch

    nan = float("nan")
    for key, value in ((column(0, nan), column(1, 2)), (column(0, 0), column(1, nan))):
        assert np.isnan(sdpa(name, column(1), key, value, attn_mask=torch.tensor(FIRST)).item())


@shows("IA-S-06", "torch-flex")
def flex_nan_behind_the_mask(name: str, label: str) -> None:
    import torch

    def first(score: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        return torch.where(j == 0, score, -float("inf"))

    assert np.isnan(sdpa(name, column(1), column(0, 0), column(1, float("nan")), score_mod=first).item())


@shows("IA-S-07", *FUSED)
def torch_swallows_a_nan_query(name: str, label: str) -> None:
    query, key, value = column(float("nan")), column(0, 0), column(1, 2)
    assert sdpa(name, query, key, value).item() == 0
    assert np.isnan(sdpa("torch-sdpa-math", query, key, value).item())


@shows("IA-P-03 IA-P-04", *FUSED, "torch-flex")
def torch_rounds_the_weights(name: str, label: str) -> None:
    arrays = [column(*values, dtype=HALVES[label]) for values in ([1], [0.01, 0], [1, -1])]
    assert rounds_to_halves(sdpa(name, *arrays, scale=1.0).item(), HALVES[label])
    assert not rounds_to_halves(sdpa("torch-sdpa-math", *arrays, scale=1.0).item(), HALVES[label])


@shows("IA-L-01", "torch-sdpa-flash")
def torch_flash_refuses_strides(name: str, label: str) -> None:
    import torch

    arrays = [torch.ones(1, 1, 2, 4) for _ in range(3)]
    assert sdpa(name, *arrays).shape == (1, 1, 2, 4)
    with pytest.raises(RuntimeError, match="No available kernel"):
        sdpa(name, torch.ones(1, 1, 2, 8)[..., ::2], *arrays[1:])


@shows("IA-S-04", "torch-flex")
def flex_needs_keys(name: str, label: str) -> None:
    import torch

    with pytest.raises(IndexError, match="non-zero size"):
        sdpa(name, torch.ones(1, 1, 2, 4), torch.ones(1, 1, 0, 4), torch.ones(1, 1, 0, 4))


def dpa(query: list[float], key: list[float], value: list[float], dtype: str = "float32", **keywords: Any) -> Any:
    """jax.nn.dot_product_attention of columns (1, n, 1, 1)."""
    import jax

    jax.config.update("jax_enable_x64", True)
    arrays = [jax.numpy.asarray(one, dtype).reshape(1, -1, 1, 1) for one in (query, key, value)]
    return jax.nn.dot_product_attention(*arrays, **keywords)


@shows("IA-S-01 IA-S-03 IA-G-04", "jax-dpa")
def jax_gives_the_mean(name: str, label: str) -> None:
    import jax

    output, lse = dpa([1], [1, -1], [1, 3], mask=jax.numpy.asarray(EMPTIED), return_residual=True)
    assert output.item() == 2
    assert np.isfinite(lse.item()) and lse.item() < -2e38
    slopes = jax.grad(lambda values: dpa([1], [1, -1], values, mask=jax.numpy.asarray(EMPTIED)).sum())(
        jax.numpy.asarray([1.0, 3.0])
    )
    assert slopes.tolist() == [0.5, 0.5]


@shows("IA-S-02", "jax-dpa")
def jax_has_no_answer_to_minus_inf(name: str, label: str) -> None:
    assert np.isnan(dpa([1], [1, -1], [1, 3], bias=np.full((1, 1, 1, 2), -np.inf, np.float32)).item())


@shows("IA-S-06", "jax-dpa")
def jax_nan_behind_the_mask(name: str, label: str) -> None:
    assert np.isnan(dpa([1], [1, 1], [1, np.nan], mask=FIRST).item())


@shows("IA-P-01 IA-G-05", "jax-dpa")
def jax_softmax_in_float32(name: str, label: str) -> None:
    import jax

    def of_key(gap: Any) -> Any:
        return dpa([1], jax.numpy.stack([gap, 0 * gap]), [1, -1], "float64", scale=1.0).sum()

    assert of_key(jax.numpy.asarray(1e-9)).item() == 0  # tanh(gap / 2) is 5e-10
    assert jax.grad(of_key)(1e-9).item() == 0.5


@shows("IA-P-03 IA-P-04", "jax-dpa")
def jax_rounds_the_weights(name: str, label: str) -> None:
    assert rounds_to_halves(float(dpa([1], [0.01, 0], [1, -1], HALVES[label], scale=1.0).item()), HALVES[label])


def onnx_attention(*arrays: np.ndarray) -> np.ndarray:
    """The operator on arrays with the axes (B, H, n, D)."""
    import onnxruntime
    from onnx import helper

    names = ["q", "k", "v", "m"][: len(arrays)]
    kinds = [helper.np_dtype_to_tensor_dtype(array.dtype) for array in arrays]
    given = [helper.make_tensor_value_info(n, t, a.shape) for n, t, a in zip(names, kinds, arrays, strict=True)]
    result = helper.make_tensor_value_info("o", kinds[0], None)
    graph = helper.make_graph([helper.make_node("Attention", names, ["o"])], "g", given, [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip(names, arrays, strict=True)))[0]


@shows("IA-P-01", "onnxruntime")
def onnxruntime_scale_in_float32(name: str, label: str) -> None:
    query, key, value = np.ones((1, 1, 1, 2)), np.asarray([[[[1.0, 0], [0, 0]]]]), np.asarray([[[[1.0], [-1]]]])
    assert 1e-9 < abs(onnx_attention(query, key, value).item() - np.tanh(0.5**1.5)) < 1e-7


@shows("IA-P-03", "onnxruntime")
def onnxruntime_scores_in_float16(name: str, label: str) -> None:
    query, key, value = (np.asarray(one, np.float16).reshape(1, 1, -1, 1) for one in ([1], [0.2, 0], [1, -1]))
    thousand = np.full((1, 1, 1, 2), 1000, np.float16)  # of which a constant changes nothing, but 1000.2 rounds to 1000
    assert onnx_attention(query, key, value).item() == pytest.approx(np.tanh(0.1), rel=1e-2)
    assert onnx_attention(query, key, value, thousand).item() == 0


@shows("IA-S-06", "onnxruntime")
def onnxruntime_nan_behind_the_mask(name: str, label: str) -> None:
    one, value = np.ones((1, 1, 2, 1), np.float32), np.asarray([[[[1], [np.nan]]]], np.float32)
    assert np.isnan(onnx_attention(one[:, :, :1], one, value, FIRST).item())


KERAS = ("keras-numpy", "keras-jax", "keras-torch")


def keras_attention(
    query: list[float], key: list[float], value: list[float], dtype: str = "float32", **keywords: Any
) -> tuple[float, str]:
    """keras.ops.dot_product_attention of columns (1, n, 1, 1): the one number, and the dtype it came in."""
    keras = _keras.imported()
    arrays = [keras.ops.reshape(keras.ops.cast(one, dtype), (1, -1, 1, 1)) for one in (query, key, value)]
    output = keras.ops.dot_product_attention(*arrays, **keywords)
    return keras.ops.convert_to_numpy(keras.ops.cast(output, "float32")).item(), keras.backend.standardize_dtype(
        output.dtype
    )


@shows("IA-S-01", *KERAS)
def keras_gives_the_mean(name: str, label: str) -> None:
    assert keras_attention([1], [1, -1], [1, 3], mask=_keras.imported().ops.convert_to_tensor(EMPTIED))[0] == 2


@shows("IA-G-04", "keras-jax")
def keras_jax_gradient_of_the_mean(name: str, label: str) -> None:
    import jax

    query, key, value, mask = (
        jax.numpy.asarray(one).reshape(1, -1, 1, 1) for one in ([1.0], [1.0, -1], [1.0, 3], [False] * 2)
    )
    attention = _keras.imported().ops.dot_product_attention
    slopes = jax.grad(lambda value: attention(query, key, value, mask=mask.reshape(1, 1, 1, 2)).sum())(value)
    assert slopes.ravel().tolist() == [0.5, 0.5]


@shows("IA-G-04", "keras-torch")
def keras_torch_gradient_of_the_mean(name: str, label: str) -> None:
    import torch

    query, key, value = (column(*one).swapaxes(1, 2) for one in ([1], [1, -1], [1, 3]))
    value.requires_grad_()
    _keras.imported().ops.dot_product_attention(query, key, value, mask=torch.tensor(EMPTIED)).sum().backward()
    assert (value.grad > 0).all()  # 1 and 1, which is not even the gradient of the mean


@shows("IA-S-02", "keras-numpy", "keras-jax")
def keras_has_no_answer_to_minus_inf(name: str, label: str) -> None:
    bias = _keras.imported().ops.convert_to_tensor(np.full((1, 1, 1, 2), -np.inf, np.float32))
    with np.errstate(invalid="ignore"):
        assert np.isnan(keras_attention([1], [1, -1], [1, 3], bias=bias)[0])


@shows("IA-S-04", "keras-numpy")
def keras_numpy_needs_keys(name: str, label: str) -> None:
    with pytest.raises(ValueError, match="zero-size array"):
        keras_attention([1], [], [])


@shows("IA-S-06", *KERAS)
def keras_nan_behind_the_mask(name: str, label: str) -> None:
    mask = _keras.imported().ops.convert_to_tensor(FIRST)
    assert np.isnan(keras_attention([1], [1, 1], [1, np.nan], mask=mask)[0])


@shows("IA-S-07", "keras-torch")
def keras_torch_swallows_a_nan_query(name: str, label: str) -> None:
    assert keras_attention([np.nan], [0, 0], [1, 2])[0] == 0


@shows("IA-P-01", *KERAS)
@shows("IA-G-05", "keras-jax", "keras-torch")
def keras_float64_becomes_float32(name: str, label: str) -> None:
    if name == "keras-jax":
        import jax

        jax.config.update("jax_enable_x64", True)
    third = np.float64(1) / 3
    found, dtype = keras_attention([1], [1], [third], "float64")
    assert (found, dtype) == (np.float32(third), "float32")


@shows("IA-P-03", "keras-numpy")
def keras_numpy_sums_in_float16(name: str, label: str) -> None:
    attention = _keras.imported().ops.dot_product_attention
    few, many = (np.zeros((1, n, 1, 2), np.float16) for n in (1, 4096))
    assert attention(few, many, many + np.float16(1.5)).tolist() == [[[[1, 1]]]]


@shows("IA-P-04", "keras-numpy")
@shows("IA-P-03 IA-P-04", "keras-jax", "keras-torch")
def keras_rounds_the_weights(name: str, label: str) -> None:
    assert rounds_to_halves(keras_attention([1], [0.01, 0], [1, -1], HALVES[label], scale=1.0)[0], HALVES[label])
