"""Read and write safetensors files, which may come from anybody: everything is checked before it is used.

The format: 8 bytes of header length (little endian), a JSON header that maps names to dtype, shape and the range of
their bytes, then the bytes, in C order and little endian. It is small enough to be read here, so that what a
hostile or broken file does is decided in one place; the ``safetensors`` package reads what this module writes, and
the other way round (tests/test_vectors_files.py).

The reader is stricter than the package in four points: names are printable ASCII, a header holds at most 4 MB, an
array has at most 16 axes, and a boolean is 0 or 1.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import ml_dtypes
import numpy as np

__all__ = ["LIMITS", "load", "loads", "parse_json", "read_bytes", "save", "saves"]

DTYPES = {
    "BOOL": np.dtype(bool),
    "U8": np.dtype("<u1"),
    "I8": np.dtype("<i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}
NAMES = {dtype.name: name for name, dtype in DTYPES.items()}

# Bytes of a file and of its header, nesting of the header's JSON, axes of an array, characters of a name.
LIMITS = {"file": 2**28, "header": 2**22, "depth": 8, "axes": 16, "name": 300}

# One that is not closed reaches to the end, so that the search is over: it must not start again at every quote.
_STRING = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_NAME = re.compile(r"[ -~]+")


def load(path: Path | str, limit: int | None = None) -> dict[str, np.ndarray]:
    """The arrays of a file, by name.

    Raises
    ------
    ValueError
        If the file breaks a rule of the format or a limit (IA-X-24); the text names the file and the rule.
    """
    return loads(read_bytes(path, limit), Path(path).name)


def read_bytes(path: Path | str, limit: int | None = None) -> bytes:
    """The content of a regular file that is not too large."""
    limit = LIMITS["file"] if limit is None else limit
    name = Path(path).name
    try:
        with open(path, "rb", opener=lambda p, flags: os.open(p, flags | getattr(os, "O_NONBLOCK", 0))) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ValueError(f"{name}: must be a regular file [IA-X-24]")
            content = file.read(limit + 1)
    except OSError as error:
        raise ValueError(f"{name}: cannot be read: {error.strerror} [IA-X-24]") from error
    if len(content) > limit:
        raise ValueError(f"{name}: must have at most {limit} bytes [IA-X-24]")
    return content


def loads(content: bytes, name: str = "file") -> dict[str, np.ndarray]:
    """The arrays of a file's bytes, by name; see :func:`load`."""

    def wrong(rule: str) -> NoReturn:
        raise ValueError(f"{name}: {rule} [IA-X-24]")

    if len(content) < 8:
        wrong(f"must begin with 8 bytes, the length of the header; it has {len(content)}")
    length = int.from_bytes(content[:8], "little")
    if length > LIMITS["header"]:
        wrong(f"the header must have at most {LIMITS['header']} bytes; its length says {length}")
    if length > len(content) - 8:
        wrong(f"the header must lie in the file; its length says {length}, {len(content) - 8} bytes follow")
    if content[8:9] != b"{":
        wrong("the header must begin with {")
    header = parse_json(content[8 : 8 + length], f"{name}: the header")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        wrong("__metadata__ must map strings to strings")
    data = memoryview(content)[8 + length :]
    described = {tensor: _described(tensor, entry, wrong) for tensor, entry in header.items()}
    position = 0
    for tensor, (_, _, begin, end) in sorted(described.items(), key=lambda item: item[1][2:]):
        if begin != position:
            wrong(f"the bytes of {tensor} must begin at {position}, without a gap or an overlap; they begin at {begin}")
        position = end
    if position != len(data):
        wrong(f"the tensors must cover all {len(data)} bytes after the header; they cover {position}")
    return {
        tensor: _array(tensor, dtype, shape, data[begin:end], wrong)
        for tensor, (dtype, shape, begin, end) in described.items()
    }


def save(path: Path | str, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays to a file; the same arrays give the same bytes."""
    Path(path).write_bytes(saves(arrays))


def saves(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The bytes of a file of these arrays.

    The header keeps their order. Their bytes stand by item size, the largest first, after a header padded to 8
    bytes, so that every array is aligned for its dtype.
    """
    little = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()}
    little = {name: array.astype(array.dtype.newbyteorder("<"), copy=False) for name, array in little.items()}
    order = sorted(little, key=lambda name: -little[name].dtype.itemsize)  # stable
    ranges, position = {}, 0
    for name in order:
        ranges[name] = [position, position + little[name].nbytes]
        position += little[name].nbytes
    header = {
        name: {"dtype": NAMES[array.dtype.name], "shape": list(array.shape), "data_offsets": ranges[name]}
        for name, array in little.items()
    }
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *(little[name].tobytes() for name in order)])


def parse_json(content: bytes, what: str) -> dict[str, Any]:
    """A JSON object of objects, arrays, strings, integers, booleans and null, each key once.

    Python's parser alone takes NaN, drops keys that come twice, and gives up on deep nesting in its own words.
    """

    def wrong(rule: str) -> NoReturn:
        raise ValueError(f"{what} {rule} [IA-X-24]")

    def integer(digits: str) -> int:
        return int(digits) if len(digits) <= 20 else wrong(f"holds an integer of {len(digits)} digits")

    def once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                wrong(f"holds the key {_shown(key)} twice")
            found[key] = value
        return found

    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        wrong(f"must be UTF-8; byte {error.start} is not")
    depth = 0
    for bracket in re.findall(r"[\[\]{}]", _STRING.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        if depth > LIMITS["depth"]:
            wrong(f"must be nested at most {LIMITS['depth']} deep")
    try:
        found = json.loads(
            text,
            object_pairs_hook=once,
            parse_int=integer,
            parse_float=lambda digits: wrong(f"holds {_shown(digits)}, where numbers are integers"),
            parse_constant=lambda word: wrong(f"holds {word}, which is not JSON"),
        )
    except json.JSONDecodeError as error:
        wrong(f"must be JSON: {error.msg} at character {error.pos}")
    if not isinstance(found, dict):
        wrong(f"must be a JSON object; got {type(found).__name__}")
    return found


def _described(tensor: str, entry: Any, wrong: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
    if len(tensor) > LIMITS["name"] or not _NAME.fullmatch(tensor):
        wrong(f"the name of a tensor must be 1 to {LIMITS['name']} printable ASCII characters; got {_shown(tensor)}")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        wrong(f"{tensor} must have dtype, shape and data_offsets, and nothing else")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in DTYPES:
        wrong(f"the dtype of {tensor} must be one of {', '.join(DTYPES)}; got {_shown(kind)}")
    if not _whole(shape) or len(shape) > LIMITS["axes"]:
        wrong(f"the shape of {tensor} must be at most {LIMITS['axes']} integers, none negative; got {_shown(shape)}")
    if not _whole(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        wrong(f"the data_offsets of {tensor} must be a begin and an end after it; got {_shown(offsets)}")
    elements = 1
    for size in shape:
        # An axis of 0 makes the others harmless, but NumPy counts them all the same.
        if size > LIMITS["file"]:
            wrong(f"no axis of {tensor} may be longer than {LIMITS['file']}; got {size}")
        elements *= max(size, 1)
        if elements > LIMITS["file"]:
            wrong(f"{tensor} must have at most {LIMITS['file']} elements; got shape {_shown(shape)}")
    elements = 0 if 0 in shape else elements
    begin, end = offsets
    if end - begin != elements * DTYPES[kind].itemsize:
        size = elements * DTYPES[kind].itemsize
        wrong(f"{tensor} of {kind} and shape {_shown(shape)} has {size} bytes; its data_offsets have {end - begin}")
    return DTYPES[kind], tuple(shape), begin, end


def _array(tensor: str, dtype: np.dtype, shape: tuple[int, ...], data: memoryview, wrong: Any) -> np.ndarray:
    if dtype == np.dtype(bool) and np.any(np.frombuffer(data, np.uint8) > 1):
        wrong(f"{tensor} of BOOL must hold bytes of 0 and 1")
    return np.frombuffer(data, dtype).reshape(shape)


def _whole(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(n) is int and n >= 0 for n in numbers)


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
