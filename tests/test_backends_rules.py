"""Every path keeps every rule of the specification: values, shapes, empty rows, poison, nan, halves, tiles."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

import ia_core
from ia_core import LinearOffset, PositionBias
from ia_core.backends import explain, indirect_attention, use_backend

from .test_backends_bounds import (
    DTYPES,
    JAX,
    LIBRARIES,
    NUMPY,
    PATHS,
    Case,
    Library,
    check,
    given,
    numbers,
    position_bias,
)

paths = pytest.mark.parametrize(("library", "path"), PATHS)
# JAX compiles every example anew.
EXAMPLES = {"jax-jit": 15}


@pytest.fixture(autouse=True)
def double_precision() -> Any:
    import jax

    with jax.enable_x64(True):
        yield


def gives_lse(path: str) -> bool:
    return path not in ("torch-sdpa", "torch-lines")


def run(library: Library, path: str, case: Case) -> tuple[Any, Any]:
    """Output and lse of one path, as NumPy arrays; halves keep their values."""
    arrays = given(library, case)
    with use_backend(path):
        if gives_lse(path):
            output, lse = indirect_attention(*arrays[:3], **arrays.keywords, return_lse=True)
            return library.take(output), library.take(lse)
        return library.take(indirect_attention(*arrays[:3], **arrays.keywords)), None


@st.composite
def cases(draw: Any) -> tuple[str, Case]:
    """A dtype and a call: structure drawn, numbers from a seed."""
    dtype = draw(st.sampled_from(list(DTYPES)))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    batch = draw(st.sampled_from([(), (2,), (2, 1, 2), (0,)]))
    Hk, group = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    M, N, D, Dv = draw(st.tuples(st.integers(0, 5), st.sampled_from([0, 1, 2, 7, 20]), *[st.integers(1, 5)] * 2))
    H = Hk * group
    size = draw(st.sampled_from([1.0, 8.0, 300.0]))

    def array(*shape: int, times: float = 1.0) -> Any:
        if draw(st.booleans()):  # every other column of a wider array
            return (times * random.normal(size=(*shape[:-1], 2 * shape[-1]))).astype(DTYPES[dtype])[..., ::2]
        return (times * random.normal(size=shape)).astype(DTYPES[dtype])

    target = (*batch, H, M, N)
    return dtype, Case(
        array(*batch, H, M, D, times=size),
        array(*batch, Hk, N, D),
        array(*batch, Hk, N, Dv),
        draw(biases(target, dtype, random)),
        draw(masks(target, random)),
        draw(st.sampled_from([None, 0.0, 0.3])),
    )


@st.composite
def parts(draw: Any, target: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that broadcasts to the target."""
    kept = target[draw(st.integers(0, len(target))) :]
    return tuple(size if draw(st.booleans()) else 1 for size in kept)


@st.composite
def masks(draw: Any, target: tuple[int, ...], random: np.random.Generator) -> Any:
    share = draw(st.sampled_from([None, 0.0, 0.3, 0.9, 1.0]))
    return None if share is None else random.random(size=draw(parts(target))) < share


@st.composite
def biases(draw: Any, target: tuple[int, ...], dtype: str, random: np.random.Generator) -> Any:
    kind = draw(st.sampled_from([None, "dense", "-inf", "least", "mlp", "table", "linear", "box"]))
    wide = {"float16": "float32", "bfloat16": "float32"}.get(dtype, dtype)
    chosen = DTYPES[draw(st.sampled_from([dtype, wide]))]
    *batch, H, M, N = target
    if kind is None:
        return None
    if kind in ("dense", "-inf", "least"):
        bias = random.normal(size=draw(parts(target)))
        least = -np.inf if kind == "-inf" else float(np.finfo(np.float16).min)
        return np.where(random.random(size=bias.shape) < 0.4, bias if kind == "dense" else least, bias).astype(chosen)
    return position_bias(kind, tuple(batch) if draw(st.booleans()) else (), H, M, N, chosen, random)


@paths
def test_values_are_within_rounding_of_the_truth(library: Library, path: str) -> None:
    @settings(max_examples=EXAMPLES.get(path, 150), derandomize=True, deadline=None, database=None)
    @drawn(cases())
    def holds(drawn_case: tuple[str, Case]) -> None:
        dtype, case = drawn_case
        output, lse = run(library, path, case)
        check(case, output, lse, dtype)

    holds()


@paths
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("times", [1e-4, 1.0, 1e4])
def test_logits_of_every_size(library: Library, path: str, dtype: str, times: float) -> None:
    query = (times * numbers(0, 2, 5, 8)).astype(DTYPES[dtype])
    case = Case(query, numbers(1, 2, 70, 8, dtype=dtype), numbers(2, 2, 70, 8, dtype=dtype))
    output, lse = run(library, path, case)
    check(case, output, lse, dtype)


@paths
def test_the_least_finite_bias_is_no_mask(library: Library, path: str) -> None:
    # Every score rounds to the bias: all keys count alike, in a row of it and in a row that it half fills.
    bias = np.zeros((3, 4), np.float32)
    bias[1], bias[2, 2:] = np.finfo(np.float32).min, np.finfo(np.float32).min
    case = Case(*(np.ones((1, L, 2), np.float32) for L in (3, 4)), np.eye(4, dtype=np.float32)[None], bias)
    output, _ = run(library, path, case)
    np.testing.assert_array_equal(output[0], [[0.25] * 4, [0.25] * 4, [0.5, 0.5, 0, 0]])


@paths
@pytest.mark.parametrize("bias", ["none", "dense", "mlp"])
def test_tiled_equals_untiled(library: Library, path: str, bias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    M, N = 5, 6
    random = np.random.default_rng(3)
    one = {"none": None, "dense": random.normal(size=(4, M, N))}
    chosen = one[bias] if bias in one else position_bias(bias, (2,), 4, M, N, np.float64, random)
    mask = random.random(size=(2, 1, M, N)) < 0.7
    mask[0, 0, 2], mask[1, :, :, 3] = False, False
    case = Case(*(random.normal(size=s) for s in ((2, 4, M, 3), (2, 2, N, 3), (2, 2, N, 4))), chosen, mask)
    # JAX compiles each: a tile of one row, one that does and one that does not divide M, and one beyond it.
    for rows in (1, 2, 5, 6) if (path, bias) == ("jax-jit", "none") else range(1, M + 2):
        set_tile_rows(path, rows, monkeypatch)
        output, lse = run(library, path, case)
        check(case, output, lse, "float64")


def set_tile_rows(path: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a path's tiles so small that a test has several."""
    from ia_core.backends import _registry

    module = _registry.load(path)
    if hasattr(module, "TILE_ROWS"):
        monkeypatch.setattr(module, "TILE_ROWS", rows)
    else:
        monkeypatch.setattr(module, "SCORES_PER_TILE", 0)
        monkeypatch.setattr(module, "LEAST_ROWS", rows)


@paths
def test_tiles_are_really_made(library: Library, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The bias is asked for tile by tile, and never as a whole; the compiled kernel does not ask.
    seen = []
    original = PositionBias.dense
    monkeypatch.setattr(PositionBias, "dense", lambda self: (seen.append(self.shape[-2]), original(self))[1])
    set_tile_rows(path, 2, monkeypatch)
    bias = PositionBias(LinearOffset(np.ones(1)), np.arange(5), np.arange(3))
    run(library, path, Case(np.ones((1, 5, 2)), np.ones((1, 3, 2)), np.ones((1, 3, 2)), bias))
    assert seen == [] if path.endswith("-native") else seen and max(seen) <= 2


POISON = [np.nan, np.inf, -np.inf]


@paths
@pytest.mark.parametrize("poison", POISON, ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_what_nobody_may_attend_to_has_no_influence(library: Library, path: str, poison: float, bias: bool) -> None:
    random = np.random.default_rng(5)
    clean = Case(
        *(random.normal(size=s) for s in ((2, 4, 5, 3), (2, 2, 6, 3), (2, 2, 6, 4))),
        random.normal(size=(4, 5, 6)) if bias else None,
        random.random(size=(2, 4, 5, 6)) < 0.8,
    )
    clean.mask[:, :2, :, 1] = False  # both query heads of the first key head
    clean.mask[:, 2, :, 2] = False  # one query head of the second: the other still reads it
    clean.mask[1, :, 3] = False
    wanted = run(library, path, clean)
    query, key, value = (array.copy() for array in clean[:3])
    key[:, 0, 1], value[:, 0, 1], query[1, :, 3] = poison, poison, poison
    dirty = clean._replace(query=query, key=key, value=value)
    if bias:  # broadcast over the first axis, so poison only where both entries forbid
        forbidden = ~np.any(clean.mask, axis=0)
        dirty = dirty._replace(bias=np.where(forbidden, poison, clean.bias))
    got = run(library, path, dirty)
    np.testing.assert_array_equal(got[0], wanted[0])
    if gives_lse(path):
        np.testing.assert_array_equal(got[1], wanted[1])
    # A head that does read the position sees what is there, and a head beside it does not.
    value[:, 1, 2] = np.nan
    output, _ = run(library, path, dirty._replace(value=value))
    assert not np.isnan(output[:, :3]).any()
    assert np.isnan(output[:, 3][clean.mask[:, 3, :, 2]]).all()


@paths
@pytest.mark.parametrize("where", ["query", "key", "value", "bias"])
def test_nan_that_is_attended_reaches_the_output(library: Library, path: str, where: str) -> None:
    # Fewer keys than a vector register holds numbers, as many, and more. JAX compiles each size.
    for N in (1, 70) if path == "jax-jit" else (1, 2, 7, 8, 15, 16, 70):
        for dtype in ("float32",) if path == "jax-jit" else ("float32", "float64"):
            arrays = {
                "query": numbers(0, 1, 3, 4, dtype=dtype),
                "key": numbers(1, 1, N, 4, dtype=dtype),
                "value": numbers(2, 1, N, 4, dtype=dtype),
            }
            if where == "bias":
                arrays["bias"] = numbers(3, 3, N, dtype=dtype)
                arrays["bias"][1] = np.nan
            elif where == "query":
                arrays["query"][0, 1, 2] = np.nan
            else:
                arrays[where][0] = np.nan
            output, lse = run(library, path, Case(**arrays))
            reached = [1] if where in ("query", "bias") else [0, 1, 2]
            assert [row for row in range(3) if np.isnan(output[0, row]).all()] == reached
            assert np.isfinite(np.delete(output, reached, axis=1)).all()
            assert lse is None or where == "value" or np.isnan(lse[0, reached]).all()


@paths
def test_nan_is_where_the_specification_has_it(library: Library, path: str) -> None:
    examples = {"jax-jit": 8}.get(path, 120)

    @settings(max_examples=examples, derandomize=True, deadline=None, database=None)
    @drawn(st.integers(0, 2**32 - 1))
    def holds(seed: int) -> None:
        random = np.random.default_rng(seed)
        M, N = int(random.integers(1, 5)), int(random.choice([1, 3, 9, 70]))
        mask = random.random(size=(M, N)) < 0.8 if random.random() < 0.5 else None
        case = Case(*(random.normal(size=(2, L, 3)) for L in (M, N, N)), mask=mask)
        if random.random() < 0.5:
            case = case._replace(bias=np.where(random.random(size=(M, N)) < 0.3, -np.inf, 0.0))
        for array in case[:3]:
            array[random.random(size=array.shape) < random.choice([0.0, 0.05, 0.5])] = np.nan
        wanted = np.isnan(ia_core.indirect_attention(*case[:3], **case.keywords))
        got = np.isnan(run(library, path, case)[0])
        # A row that may not attend to a key of nan, which another row may attend to, is not covered by IA-S-06.
        covered = np.ones((2, M), bool)
        if mask is not None:
            shared = np.isnan(case.key).any(axis=-1) & mask.any(axis=0)  # (2, N)
            covered = ~np.any(shared[:, None, :] & ~mask, axis=-1)
        np.testing.assert_array_equal(got[covered], wanted[covered])
        assert got[wanted].all()

    holds()


@paths
@pytest.mark.parametrize("how", ["mask", "bias", "both"])
def test_a_row_with_nothing_to_attend_to(library: Library, path: str, how: str) -> None:
    mask, bias = np.ones((3, 4), bool), np.zeros((3, 4))
    mask[1] = how != "mask"
    bias[1] = -np.inf if how == "bias" else 0.0
    if how == "both":
        mask[1, :2], bias[1, 2:] = False, -np.inf
    case = Case(*(numbers(seed, 2, L, 3) for seed, L in enumerate((3, 4, 4))), bias, mask)
    output, lse = run(library, path, case)
    assert not output[:, 1].any() and output[:, [0, 2]].all()
    check(case, output, lse, "float64")


@paths
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves_are_rounded_once(library: Library, path: str, dtype: str) -> None:
    # 4096 equal weights: a sum in halves stops growing, and rounded weights do not sum to 1.
    case = Case(*(numbers(seed, 1, L, 4, dtype=dtype) for seed, L in enumerate((2, 4096, 4096))), scale=0.0)
    output, lse = run(library, path, case)
    check(case, output, lse, dtype)
    assert lse is None or np.max(np.abs(lse.astype(np.float64) - np.log(4096))) < 1e-6


@paths
def test_inputs_are_left_as_they_are(library: Library, path: str) -> None:
    random = np.random.default_rng(8)
    mask = random.random(size=(3, 4)) < 0.6
    case = Case(*(random.normal(size=(2, L, 3)) for L in (3, 4, 4)), random.normal(size=(3, 4)), mask)
    case.value[0, 0] = np.nan
    before = [array.copy() for array in case[:5]]
    arrays = given(library, case)
    with use_backend(path), contextlib.suppress(ValueError):
        indirect_attention(*arrays[:3], **arrays.keywords)
    for array, old in zip(arrays[:5], before, strict=True):
        np.testing.assert_array_equal(library.take(array), old)


@paths
def test_result_dtypes(library: Library, path: str) -> None:
    from ia_core._arrays import dtype_name

    for dtype in DTYPES:
        arrays = [library.give(numbers(seed, 1, 2, 3, dtype=dtype)) for seed in range(3)]
        with use_backend(path):
            assert dtype_name(indirect_attention(*arrays).dtype) == dtype
            if gives_lse(path):
                wide = "float64" if dtype == "float64" else "float32"
                assert dtype_name(indirect_attention(*arrays, return_lse=True)[1].dtype) == wide


def test_every_path_is_the_one_that_its_library_takes() -> None:
    first = {"numpy": NUMPY, "torch": "torch-sdpa", "jax": JAX}
    for name, path in first.items():
        arrays = [LIBRARIES[name].give(numbers(seed, 1, 2, 3)) for seed in range(3)]
        assert explain(*arrays).path == path
