"""The golden vectors: what they cover, that they are the same wherever they are made, and that they tell."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ia_core
from ia_core.conformance import CLAUSES, _oracle
from ia_core.conformance import _vectors as module
from ia_core.conformance._oracle import Exact
from ia_core.conformance._safetensors import save
from ia_core.conformance._vectors_check import check
from ia_core.conformance._vectors_draw import Draw
from ia_core.conformance._vectors_forward import QUESTIONS, Question
from ia_core.conformance._vectors_index import FLAGS, GOLDEN, read

from .vector_answers import answers

COVERED = "FESPGB"


@pytest.fixture(scope="module")
def golden() -> Any:
    return read(GOLDEN)


@pytest.mark.parametrize(
    "environment",
    [
        {"OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "1", "LC_ALL": "C", "TZ": "UTC"},
        {"OPENBLAS_NUM_THREADS": "2", "PYTHONHASHSEED": "2", "LC_ALL": "tr_TR.UTF-8", "TZ": "Asia/Tokyo"},
    ],
    ids=["one thread", "two threads"],
)
def test_a_fresh_export_is_the_checked_in_set(environment: dict[str, str], tmp_path: Path) -> None:
    script = f"from ia_core.conformance._vectors import export; export({str(tmp_path / 'set')!r})"
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for path in GOLDEN.iterdir():
        assert (tmp_path / "set" / path.name).read_bytes() == path.read_bytes(), path.name
    assert sum(path.stat().st_size for path in GOLDEN.iterdir()) <= 3 * 2**20


def test_every_clause_that_is_one_call_has_vectors(golden: Any) -> None:
    covered = {entry["clause"] for entry in golden.entries.values()}
    wanted = {label for label, clause in CLAUSES.items() if clause.family in COVERED}
    assert not covered & set(module.ELSEWHERE)
    assert wanted - covered - set(module.ELSEWHERE) == set()
    # Clauses asked about are clauses of the specification, whether or not a check is registered yet.
    specification = (Path(__file__).parents[1] / "docs" / "spec.md").read_text(encoding="utf-8")
    assert [label for label in sorted(covered) if f"| {label} |" not in specification] == []
    assert {flag for entry in golden.entries.values() for flag in entry["flags"]} == set(FLAGS)
    assert {entry["dtype"] for entry in golden.entries.values()} == {"float64", "float32", "float16", "bfloat16"}


def test_the_index_is_as_its_schema_says() -> None:
    schema = json.loads((GOLDEN.parent / "schemas" / "vectors.schema.json").read_text(encoding="utf-8"))
    index = json.loads((GOLDEN / "index.json").read_text(encoding="utf-8"))
    assert tuple(schema["$defs"]["vector"]["properties"]["flags"]["items"]["enum"]) == FLAGS
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    assert [error.message for error in validator.iter_errors(index)] == []
    index["vectors"][0]["flags"] = ["unheard-of"]
    assert not validator.is_valid(index)


# Sums over keys in another order, and balls of twice as many digits, give the same bytes: neither the last bits of a
# bound nor the end of a ball is near an edge.


def test_the_order_of_sums_does_not_show() -> None:
    seen = 0
    for vector in module.vectors():
        question = vector.question
        if vector.id.split("/")[0] in ("IA-E-17", "IA-G-13") or isinstance(question.case.bias, ia_core.PositionBias):
            continue  # few keys, and few more to learn
        call = {name: vector.inputs[name] for name in ("cotangent", "lse_cotangent") if name in vector.inputs}
        turned = module._expected(_turned(question), call)
        for name, array in vector.expected.items():
            if name in ("output", "lse", "grad/query") or name[6:] in ("output", "lse", "grad/query"):
                assert turned[name].tobytes() == array.tobytes(), (vector.id, name)
                seen += 1
    assert seen > 800


def _turned(question: Question) -> Question:
    """The same call with its keys in the opposite order."""

    def turn(case: Any) -> Any:
        flipped = {name: np.ascontiguousarray(getattr(case, name)[..., ::-1, :]) for name in ("key", "value")}
        for name in ("bias", "mask"):
            array = getattr(case, name)
            flipped[name] = array if array is None or array.ndim == 0 else np.ascontiguousarray(array[..., ::-1])
        return case.but(**flipped)

    like = None if question.like is None else turn(question.like)
    return question._replace(case=turn(question.case), like=like)


@pytest.mark.parametrize("family", ["F", "S", "G", "B", "P-0[1-4]", "E-0"])
def test_more_digits_change_nothing(family: str, monkeypatch: pytest.MonkeyPatch, golden: Any) -> None:
    monkeypatch.setattr(_oracle, "PRECISION", 2 * _oracle.PRECISION)
    prefixes = [f"IA-P-0{n}" for n in range(1, 5)] if family.startswith("P") else [f"IA-{family}"]
    for vector in (vector for prefix in prefixes for vector in module.vectors(prefix)):
        for name, array in (vector.inputs | vector.expected).items():
            assert golden.arrays[f"{vector.id}/{name}"].tobytes() == array.tobytes(), (vector.id, name)


def test_what_lies_on_an_edge_is_refused() -> None:
    on_edge = 129 / 256 / (1 + 2.0**-20)
    with pytest.raises(ValueError, match="on an edge"):
        module.upward(np.asarray([on_edge]))
    bounds = np.asarray([0.0, 2.0**-126, 1.0, 3e-7])
    up = module.upward(bounds)
    assert np.all(up >= bounds) and np.all(up <= bounds * (1 + 2.0**-6)) and up[0] == 0.0


def test_rounding_to_nearest_in_every_dtype() -> None:
    def one(high: float, low: float, dtype: str) -> float:
        return float(module.rounded(Exact(np.asarray(high), np.asarray(low)), dtype))

    for dtype, p in (("float32", 24), ("float16", 11), ("bfloat16", 8)):
        tie = 1 + 2.0**-p  # between 1 and the next number
        assert one(tie, 0.0, dtype) == 1.0
        assert one(tie, 2.0 ** (-30 - p), dtype) == 1 + 2.0 ** (1 - p)
        assert one(tie, -(2.0 ** (-30 - p)), dtype) == 1.0
        assert one(tie, 2.0 ** (-45 - p), dtype) == 1.0  # a tie but for the end of the ball
        assert one(1 + 3 * 2.0**-p, 0.0, dtype) == 1 + 4 * 2.0**-p
    assert one(1.0 - 2.0**-53, 2.0**-53, "float64") == 1.0  # the oracle cuts digits off
    assert one(2.0**-25, 0.0, "float16") == 0.0 and one(3 * 2.0**-25, 0.0, "float16") == 2.0**-23
    with pytest.raises(ValueError, match="too large"):
        one(1e6, 0.0, "float16")
    rng = np.random.default_rng(0)
    some = rng.standard_normal(1000) * 2.0 ** rng.integers(-30, 10, 1000)
    for dtype in ("float32", "float16"):  # NumPy rounds a float64 to these to nearest
        assert np.array_equal(module.rounded(Exact(some, np.zeros(1000)), dtype), some.astype(dtype))


def test_numbers_are_exact_and_have_all_bits() -> None:
    for dtype, p in (("float64", 53), ("float32", 24), ("float16", 11), ("bfloat16", 8)):
        numbers = Draw("IA-F-01", dtype).numbers(500).astype(np.float64)
        steps = np.ldexp(numbers, p - 1)
        assert np.array_equal(steps, np.round(steps)) and np.any(steps % 2 == 1)
        assert np.all(np.abs(numbers) <= 2) and abs(numbers.mean()) < 0.2 and numbers.std() > 1
    assert Draw("IA-F-01", "float32").words(1)[0] != Draw("IA-F-02", "float32").words(1)[0]


def test_ids_are_kept_for_what_is_retired(monkeypatch: pytest.MonkeyPatch) -> None:
    asking = QUESTIONS["IA-F-02", "float32"]
    usual = [vector.id for vector in module.vectors("IA-F-02/float32/")]

    def shorter(draw: Draw) -> Any:
        for number, question in enumerate(asking(draw)):
            yield None if number == 1 else question

    monkeypatch.setitem(QUESTIONS, ("IA-F-02", "float32"), shorter)
    assert [vector.id for vector in module.vectors("IA-F-02/float32/")] == [usual[0], *usual[2:]]


# What the vectors say of implementations.


def judge(golden: Any, results: dict[str, np.ndarray], folder: Path) -> dict[str, list[str]]:
    """Outcomes, and the vectors of each."""
    save(folder / "results.safetensors", results)
    found: dict[str, list[str]] = {}
    for outcome in check(folder, golden):
        found.setdefault(outcome.outcome, []).append(outcome.id)
    return found


@pytest.mark.parametrize("dense", [True, False], ids=["dense", "evaluated"])
def test_the_reference_passes(golden: Any, dense: bool, tmp_path: Path) -> None:
    assert set(judge(golden, answers(golden, dense=dense), tmp_path)) == {"pass"}


def altered(**how: Any) -> Any:
    """The reference with something wrong in it."""

    def attention(query: Any, key: Any, value: Any, **keywords: Any) -> Any:
        keywords = {name: how[name](keywords.get(name), query) if name in how else x for name, x in keywords.items()}
        if "scale" in how:
            keywords["scale"] = how["scale"](keywords.get("scale"), query)
        result = ia_core.indirect_attention(query, key, value, **keywords)
        if "lse" in how and isinstance(result, tuple):
            return result[0], how["lse"](result[1], query)
        return how["output"](result, query) if "output" in how and not isinstance(result, tuple) else result

    return attention


WRONG = {
    "scale 1 / D": (altered(scale=lambda s, q: 1 / q.shape[-1] if s is None else s), "IA-F-02"),
    "a scale that is given is not used": (altered(scale=lambda s, q: None), "IA-F-03"),
    "the mask upside down": (altered(mask=lambda m, q: ~m), "IA-F-06"),
    "an lse to base 2": (altered(lse=lambda x, q: (x / np.log(2)).astype(x.dtype)), "IA-F-08"),
    "half a bias": (altered(bias=lambda b, q: b if b is None else (b / 2).astype(b.dtype)), "IA-E-02"),
    "nan made 0": (altered(output=lambda x, q: np.nan_to_num(x)), "IA-S-07"),
    "float64 through float32": (altered(output=lambda x, q: x.astype(np.float32).astype(x.dtype)), "IA-P-01"),
    "the output in float64": (altered(output=lambda x, q: x.astype(np.float64)), "IA-P-03"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_implementation_fails(name: str, golden: Any, tmp_path: Path) -> None:
    function, clause = WRONG[name]
    found = judge(golden, answers(golden, function), tmp_path)
    assert any(vector.startswith(clause) for vector in found["fail"])


def test_half_precision_sums_fail(golden: Any, tmp_path: Path) -> None:
    def everything_in_half(query: Any, key: Any, value: Any, *, bias=None, mask=None, scale=None, return_lse=False):
        kind = query.dtype.type
        key, value = (np.repeat(array, query.shape[-3] // max(1, array.shape[-3]), axis=-3) for array in (key, value))
        scores = query @ np.swapaxes(key, -1, -2) * kind(scale or query.shape[-1] ** -0.5)
        scores = scores if bias is None else scores + bias.astype(query.dtype)
        scores = scores if mask is None else np.where(mask, scores, kind(-np.inf))
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True, initial=kind(-np.inf)))
        total = np.add.accumulate(weights, axis=-1, dtype=query.dtype)[..., -1:]
        output = (weights / total) @ value
        return (output, np.log(total[..., 0]).astype(np.float32)) if return_lse else output

    for dtype, clause in (("float16", "IA-P-03"), ("bfloat16", "IA-P-04")):
        names = {f"{clause}/{dtype}/000", f"IA-P-05/{dtype}/000"}
        found = judge(golden, answers(golden, everything_in_half, names=names), tmp_path)
        assert set(found["fail"]) == names, dtype


def test_zeros_pass_only_where_zeros_are_right(golden: Any, tmp_path: Path) -> None:
    zeros = {
        f"{name}/{part}": np.zeros_like(golden.arrays[f"{name}/{part}"])
        for name, entry in golden.entries.items()
        for part in entry["expected"]
        if not part.startswith("bound/")
    }
    passed = set(judge(golden, zeros, tmp_path)["pass"])
    right = {
        name
        for name, entry in golden.entries.items()
        if all(
            np.all(golden.arrays[f"{name}/{part}"] == 0) for part in entry["expected"] if not part.startswith("bound/")
        )
    }
    assert passed == right and {name.split("/")[0] for name in right} <= {"IA-S-01", "IA-S-05", "IA-S-13", "IA-G-04"}


def test_a_vector_is_described_by_its_entry(golden: Any) -> None:
    entry = golden.entries["IA-F-01/float32/002"]
    assert entry["flags"] == ["bias", "grouped", "lse", "mask", "scale", "value_width"]
    assert entry["scale"] == {"decimal": "0.375", "given": True, "hex": "0x1.8000000000000p-2"}
    assert entry["inputs"]["query"] == [2, 4, 3, 4] and entry["expected"]["lse"] == [2, 4, 3]
    assert dataclasses.is_dataclass(golden)
