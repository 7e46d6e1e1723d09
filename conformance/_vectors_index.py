"""The index of a set of golden vectors, and the check that a set is whole.

``index.json`` is written in one way only: keys sorted, no spaces, a line for each vector, numbers only where they are
integers. So a reader can demand the very bytes, and a digest of the rest stands in the file itself.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ._safetensors import loads, parse_json, read_bytes

__all__ = ["ARRAYS", "FLAGS", "GOLDEN", "INDEX", "SUMS", "VectorSet", "describe", "index_bytes", "read", "sums_bytes"]

FORMAT, VERSION, SPECIFICATION = "indirect-attention vectors", 1, "0.3"
ARRAYS, INDEX, SUMS = "vectors.safetensors", "index.json", "SHA256SUMS"
GOLDEN = Path(__file__).parent / "vectors"
LARGEST = 2**26

FLAGS = (
    *("batch_axes", "bias", "bias_broadcast", "bias_grad", "empty", "grad", "grouped", "inf", "lse", "lse_grad"),
    *("mask", "nan", "position_bias", "scale", "value_width", "wide_bias"),
)
KEYS = {"clause", "dtype", "expected", "flags", "id", "inputs", "note", "scale", "sha256"}
_ID = re.compile(r"(IA-[A-Z]-\d\d)/(float64|float32|float16|bfloat16)/\d{3}")


@dataclasses.dataclass(frozen=True)
class VectorSet:
    """A set that is whole.

    Attributes
    ----------
    folder : Path
    entries : dict of id to dict
        As in the index.
    arrays : dict of name to array
        ``<id>/query`` and so on.
    """

    folder: Path
    entries: dict[str, dict[str, Any]]
    arrays: dict[str, np.ndarray]


def describe(
    name: str, question: Any, inputs: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """The entry of a vector."""
    clause, dtype, _ = name.split("/")
    given, number = question.case.scale is not None, float(inputs["scale"])
    return {
        "clause": clause,
        "dtype": dtype,
        "expected": {part: list(array.shape) for part, array in expected.items()},
        "flags": _flags(question, inputs, expected),
        "id": name,
        "inputs": {part: list(array.shape) for part, array in inputs.items()},
        "note": question.note,
        "scale": {"decimal": repr(number), "given": given, "hex": number.hex()},
        "sha256": _digest_of({**inputs, **expected}),
    }


def _flags(question: Any, inputs: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> list[str]:
    """What a program needs, in the words of the suite's features; and which special values come."""
    case = question.case
    query, key, value, bias = case.query, case.key, case.value, inputs.get("bias")
    floats = [array.astype(np.float64) for array in inputs.values()]
    holds = {
        "batch_axes": query.ndim != 4,
        "bias": bias is not None,
        "bias_broadcast": bias is not None and bias.shape != case.scores_shape and "position" not in str(list(inputs)),
        "bias_grad": "grad/bias" in expected,
        "empty": 0 in (*case.scores_shape, *case.output_shape),
        "grad": question.grad,
        "grouped": query.shape[-3] != key.shape[-3],
        "inf": any(np.any(np.isinf(array)) for array in floats),
        "lse": question.lse,
        "lse_grad": question.lse_grad,
        "mask": case.mask is not None,
        "nan": any(np.any(np.isnan(array)) for array in floats),
        "position_bias": any(part.startswith("position/") for part in inputs),
        "scale": case.scale is not None,
        "value_width": value.shape[-1] != query.shape[-1],
        "wide_bias": bias is not None and bias.dtype != query.dtype,
    }
    return sorted(flag for flag, yes in holds.items() if yes)


def index_bytes(entries: Iterable[Mapping[str, Any]], files: Mapping[str, bytes]) -> bytes:
    """The index of vectors whose arrays stand in these files."""
    listed = {name: {"bytes": len(content), "sha256": _sha256(content)} for name, content in sorted(files.items())}
    index = {"files": listed, "format": FORMAT, "specification": SPECIFICATION, "vectors": list(entries)}
    return _serialised({**index, "version": VERSION})


def sums_bytes(files: Mapping[str, bytes]) -> bytes:
    """What ``sha256sum`` writes, and ``sha256sum -c`` checks."""
    return "".join(f"{_sha256(content)}  {name}\n" for name, content in sorted(files.items())).encode("ascii")


def read(folder: Path | str) -> VectorSet:
    """A set, after its files, its index and its digests were found to be whole and to fit.

    Raises
    ------
    ValueError
        If anything is missing, strange, or changed (IA-X-24); the text names the file and the rule.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"`SET` must be a folder; {folder} is none [IA-X-24]")
    present = {path.name for path in folder.iterdir()}
    files: dict[str, bytes] = {}
    for name in (INDEX, ARRAYS):
        files[name] = read_bytes(folder / name, LARGEST)
    if read_bytes(folder / SUMS, LARGEST) != sums_bytes(files):
        _wrong(SUMS, "must hold the SHA-256 of every other file, as sha256sum writes it; a file was changed")
    if present != {INDEX, ARRAYS, SUMS}:
        _wrong(sorted(present - {INDEX, ARRAYS, SUMS})[0], "is no file of the set")
    index = _checked_index(files)
    arrays = loads(files[ARRAYS], ARRAYS)
    entries = {entry["id"]: entry for entry in index["vectors"]}
    expected = {f"{name}/{part}": shape for name, entry in entries.items() for part, shape in _parts(entry)}
    if list(expected) != list(arrays):
        odd = sorted(set(expected) ^ set(arrays)) or ["the order of the tensors"]
        _wrong(ARRAYS, f"must hold what the index lists; {odd[0]} stands on one side only")
    for tensor, shape in expected.items():
        if list(arrays[tensor].shape) != shape:
            _wrong(ARRAYS, f"{tensor} must have shape {shape}; got {list(arrays[tensor].shape)}")
    for name, entry in entries.items():
        if _digest_of({part: arrays[f"{name}/{part}"] for part, _ in _parts(entry)}) != entry["sha256"]:
            _wrong(ARRAYS, f"the bytes of {name} must have the SHA-256 of the index")
        if float(arrays[f"{name}/scale"]) != float.fromhex(entry["scale"]["hex"]):
            _wrong(INDEX, f"the scale of {name} must be that of its tensor")
    return VectorSet(folder, entries, arrays)


def _checked_index(files: Mapping[str, bytes]) -> dict[str, Any]:
    index = parse_json(files[INDEX], f"{INDEX}:")
    if index.get("format") != FORMAT or index.get("version") != VERSION:
        _wrong(INDEX, f"must be {FORMAT!r}, version {VERSION}; got {index.get('format')!r}, {index.get('version')!r}")
    if set(index) != {"files", "format", "sha256", "specification", "vectors", "version"}:
        _wrong(INDEX, "must have the keys of vectors.schema.json and no others")
    if not isinstance(index["vectors"], list) or not all(_well_formed(entry) for entry in index["vectors"]):
        _wrong(INDEX, "each vector must be as vectors.schema.json says")
    names = [entry["id"] for entry in index["vectors"]]
    if names != sorted(set(names)):
        _wrong(INDEX, "ids must be sorted, each once")
    stated = index.pop("sha256")
    if files[INDEX] != _serialised(index):
        _wrong(
            INDEX, f"must be written in the one way that docs/vectors.md says, with its own digest; it says {stated}"
        )
    actual = {ARRAYS: {"bytes": len(files[ARRAYS]), "sha256": _sha256(files[ARRAYS])}}
    if index["files"] != actual:
        _wrong(INDEX, f"files must be {actual}; got {index['files']}")
    return index


def _well_formed(entry: Any) -> bool:
    if not isinstance(entry, dict) or set(entry) != KEYS:
        return False
    texts = all(isinstance(entry[key], str) for key in ("clause", "dtype", "id", "note", "sha256"))
    match = _ID.fullmatch(entry["id"]) if texts else None
    if match is None or (entry["clause"], entry["dtype"]) != match.groups():
        return False
    shapes = [shape for part in ("inputs", "expected") for shape in _values(entry[part])]
    if not all(isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape) for shape in shapes):
        return False
    scale = entry["scale"]
    if not isinstance(scale, dict) or set(scale) != {"decimal", "given", "hex"}:
        return False
    try:
        same = float(scale["decimal"]).hex() == scale["hex"] and math.isfinite(float(scale["decimal"]))
    except (TypeError, ValueError):
        return False
    known = isinstance(entry["flags"], list) and all(flag in FLAGS for flag in entry["flags"])
    return same and known and "output" in entry["expected"] and "scale" in entry["inputs"]


def _values(shapes: Any) -> Sequence[Any]:
    return list(shapes.values()) if isinstance(shapes, dict) else [None]


def _parts(entry: Mapping[str, Any]) -> list[tuple[str, list[int]]]:
    return [*entry["inputs"].items(), *entry["expected"].items()]


def _serialised(index: Mapping[str, Any]) -> bytes:
    """The one way to write an index that does not hold its digest yet."""
    index = {**index, "sha256": _sha256(_canonical(index).encode("ascii"))}
    lines = []
    for key in sorted(index):
        if key == "vectors":
            rows = ",\n".join(_canonical(entry) for entry in index[key])
            lines.append(f'"vectors":[\n{rows}\n]')
        else:
            lines.append(f"{_canonical(key)}:{_canonical(index[key])}")
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode("ascii")


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _digest_of(arrays: Mapping[str, np.ndarray]) -> str:
    """Of the bytes of a vector's tensors, by their names in the order of ASCII."""
    text = hashlib.sha256()
    for name in sorted(arrays):
        text.update(np.ascontiguousarray(arrays[name]).tobytes())
    return text.hexdigest()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _wrong(name: str, rule: str) -> NoReturn:
    raise ValueError(f"{name}: {rule} [IA-X-24]")
