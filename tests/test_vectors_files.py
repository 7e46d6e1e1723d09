"""Files that come from anybody: safetensors that break the format, and a set in which one bit has flipped."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ia_core.conformance import _safetensors as files
from ia_core.conformance._vectors_check import check
from ia_core.conformance._vectors_index import ARRAYS, GOLDEN, INDEX, SUMS, read, sums_bytes

EVERY = {
    "IA-F-01/float64/000/output": np.arange(6.0).reshape(2, 3),
    "half": np.asarray([[1.5, np.nan, -np.inf]], np.float16),
    "brain": np.asarray([3.0, -0.0], ml_dtypes.bfloat16),
    "single": np.zeros((0, 4), np.float32),
    "whole": np.asarray(-7, np.int64),
    "mask": np.asarray([True, False, True]),
    "bytes": np.arange(5, dtype=np.uint8),
}


def raw(header: Any, data: bytes = b"") -> bytes:
    """A file of any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_what_is_written_is_read_and_by_the_package_too(tmp_path: Path) -> None:
    content = files.saves(EVERY)
    assert files.saves(dict(EVERY)) == content and int.from_bytes(content[:8], "little") % 8 == 0
    package = pytest.importorskip("safetensors.numpy")
    files.save(tmp_path / "a.safetensors", EVERY)
    for found in (files.loads(content), package.load_file(tmp_path / "a.safetensors")):
        assert set(found) == set(EVERY)
        for name, array in EVERY.items():
            assert found[name].dtype == array.dtype and found[name].shape == array.shape
            assert found[name].tobytes() == array.tobytes()
    again = files.loads(package.save(EVERY))
    assert all(again[name].tobytes() == array.tobytes() for name, array in EVERY.items()), "written by the package"
    assert files.loads(raw({"__metadata__": {"made": "here"}, "a": entry()}, bytes(8)))["a"].tolist() == [0.0, 0.0]
    assert files.loads(raw(b"{}   ")) == {}


WRONG = {
    "no length": (b"\0\0\0", "must begin with 8 bytes"),
    "a huge header": ((2**63).to_bytes(8, "little") + b"{}", "must have at most"),
    "a header beyond the file": ((100).to_bytes(8, "little") + b"{}", "must lie in the file"),
    "no object": (raw(b"[]"), "must begin with {"),
    "not UTF-8": (raw(b'{"\xff":1}'), "must be UTF-8"),
    "not JSON": (raw(b'{"a":}'), "must be JSON"),
    "two objects": (raw(b"{}{}"), "must be JSON"),
    "NaN": (raw(b'{"a":NaN}'), "NaN, which is not JSON"),
    "a float": (raw(b'{"a":1.5}'), "where numbers are integers"),
    "many digits": (raw(b'{"a":' + b"9" * 5000 + b"}"), "an integer of 5000 digits"),
    "a key twice": (raw(b'{"a":1,"a":1}'), "the key 'a' twice"),
    "deep": (raw(b'{"a":' + b"[" * 200_000), "at most 8 deep"),
    "deep in a string": (raw(b'{"a":"' + b"[" * 20 + b'"}'), "must have dtype"),
    "open strings": (raw(b'{"' + b'\\"' * 1_000_000), "must be JSON"),
    "metadata": (raw({"__metadata__": {"a": 1}}), "map strings to strings"),
    "a strange name": (raw({"a\n": entry()}, bytes(8)), "printable ASCII"),
    "half a pair": (raw(b'{"\\ud800":1}'), "printable ASCII"),
    "no shape": (raw({"a": {"dtype": "F32"}}), "must have dtype, shape and data_offsets"),
    "one more key": (raw({"a": {**entry(), "more": 1}}, bytes(8)), "and nothing else"),
    "a strange dtype": (raw({"a": entry("F24")}, bytes(8)), "the dtype of a must be one of"),
    "a dtype that is a list": (raw({"a": entry(["F32"])}, bytes(8)), "the dtype of a must be one of"),
    "a negative size": (raw({"a": entry(shape=[-2])}, bytes(8)), "none negative"),
    "a size that is true": (raw({"a": entry(shape=[True])}, bytes(8)), "none negative"),
    "many axes": (raw({"a": entry(shape=[1] * 17, offsets=[0, 4])}, bytes(4)), "at most 16 integers"),
    "a huge size": (raw({"a": entry(shape=[2**62])}, bytes(8)), "no axis of a may be longer"),
    "sizes that overflow": (
        raw({"a": entry(shape=[2**28, 2**28, 2**8], offsets=[0, 0])}),
        "at most 268435456 elements",
    ),
    "0 times much": (raw({"a": entry(shape=[0, 2**28, 2**28], offsets=[0, 0])}), "at most 268435456 elements"),
    "a wrong number of bytes": (raw({"a": entry(shape=[3])}, bytes(8)), "has 12 bytes; its data_offsets have 8"),
    "an end before its begin": (raw({"a": entry(offsets=[8, 0])}, bytes(8)), "a begin and an end"),
    "three offsets": (raw({"a": entry(offsets=[0, 8, 8])}, bytes(8)), "a begin and an end"),
    "an overlap": (raw({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12)), "must begin at 8"),
    "the same bytes twice": (raw({"a": entry(), "b": entry()}, bytes(8)), "must begin at 8"),
    "a gap": (raw({"a": entry(), "b": entry(offsets=[12, 20])}, bytes(20)), "must begin at 8"),
    "bytes beyond": (raw({"a": entry()}, bytes(9)), "must cover all 9 bytes"),
    "too few bytes": (raw({"a": entry()}, bytes(7)), "must cover all 7 bytes"),
    "a boolean of 2": (raw({"a": entry("BOOL", [1], [0, 1])}, b"\2"), "bytes of 0 and 1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_breaks_the_format_is_refused(name: str) -> None:
    content, rule = WRONG[name]
    begun = time.perf_counter()
    with pytest.raises(ValueError, match=r"^results\.safetensors: .*\[IA-X-24\]$") as caught:
        files.loads(content, "results.safetensors")
    assert rule in str(caught.value) and len(str(caught.value)) < 400
    assert time.perf_counter() - begun < 2.0


def test_what_is_no_file_of_a_fair_size_is_refused(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(100))
    with pytest.raises(ValueError, match=r"large: must have at most 99 bytes \[IA-X-24\]"):
        files.load(tmp_path / "large", 99)
    with pytest.raises(ValueError, match=r"absent: cannot be read: .* \[IA-X-24\]"):
        files.load(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"cannot be read|regular file"):
        files.load(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ValueError, match=r"pipe: must be a regular file \[IA-X-24\]"):
            files.load(tmp_path / "pipe")


# 10,000 mutated files: an error of ours or arrays; nothing else.

TOKENS = (
    *(b"-1", b"0", b"1", b"255", b"4294967296", b"18446744073709551615", b"99999999999999999999999", b"1e9", b"0.5"),
    *(b"NaN", b"null", b"true", b'""', b'"F64"', b'"BF16"', b'"BOOL"', b"[]", b"{}", b"[[[[[[[[[[", b'"__metadata__"'),
    *(b",", b":", b"}", b"\\", b"\\u0000", b"\xc3\x28", b'"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},'),
)


def mutated(rng: random.Random, content: bytes) -> bytes:
    """One to three changes: flipped bits, cuts, splices, tokens in the header, lengths."""
    for _ in range(rng.randint(1, 3)):
        changed = bytearray(content)
        length = int.from_bytes(content[:8], "little")
        end = min(len(content), 8 + length)
        kind = rng.randrange(7)
        if kind == 0 and changed:
            for _ in range(rng.randint(1, 8)):
                changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del changed[rng.randrange(len(changed) + 1) :]
        elif kind == 2:
            a, b, c = (rng.randrange(len(changed) + 1) for _ in range(3))
            changed[c:c] = content[min(a, b) : max(a, b)]
        elif kind == 3:
            size = rng.choice([0, 1, length - 1, length + 1, 2**22, 2**22 + 1, 2**31, 2**63, 2**64 - 1])
            changed[:8] = (size % 2**64).to_bytes(8, "little")
        elif kind == 4 and changed:
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        elif end > 9:  # a token into, or over, the header, whose length then fits again
            at = rng.randrange(9, end)
            changed[at : at + rng.choice([0, 0, 1, 2, 4])] = rng.choice(TOKENS)
            if rng.random() < 0.8:
                changed[:8] = (max(0, length + len(changed) - len(content)) % 2**64).to_bytes(8, "little")
        content = bytes(changed)
    return content


def test_mutated_files_give_arrays_or_an_error_of_ours() -> None:
    package = pytest.importorskip("safetensors")
    rng = random.Random(20240229)
    large = {"large": np.arange(1500, dtype=np.float32)}
    originals = [files.saves(EVERY), files.saves({**EVERY, **large})]
    accepted = refused = 0
    tracemalloc.start()
    begun = time.perf_counter()
    for _ in range(10_000):
        content = mutated(rng, rng.choice(originals))
        try:
            found = files.loads(content, "some.safetensors")
        except ValueError as error:
            text = str(error)
            assert text.startswith("some.safetensors: ") and text.endswith(" [IA-X-24]") and len(text) < 600, text
            refused += 1
            continue
        accepted += 1
        assert sum(array.nbytes for array in found.values()) <= len(content)
        # What we take, the package takes, and finds the same.
        assert {name: bytes(parts["data"]) for name, parts in package.deserialize(content)} == {
            name: array.tobytes() for name, array in found.items()
        }
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert accepted > 500 and refused > 5000, (accepted, refused)
    assert peak < 64 * 2**20 and time.perf_counter() - begun < 60


def test_mutated_results_give_verdicts_or_an_error_of_ours(tmp_path: Path) -> None:
    golden = read(GOLDEN)
    names = [name for name in golden.arrays if name.startswith("IA-F-0") and name.endswith("/output")]
    original = files.saves({name: golden.arrays[name] for name in names if "/bound/" not in name})
    rng = random.Random(1)
    judged = 0
    for _ in range(300):
        (tmp_path / "results.safetensors").write_bytes(mutated(rng, original))
        try:
            judged += len(check(tmp_path, golden)) == len(golden.entries)
        except ValueError as error:
            assert str(error).endswith(" [IA-X-24]")
    assert judged > 3


# One bit, anywhere.


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN, tmp_path / "set"))


def refused(folder: Path, name: str, content: bytes) -> str:
    """What the reader says when one file has this content; the file is put back."""
    usual = (folder / name).read_bytes()
    (folder / name).write_bytes(content)
    try:
        with pytest.raises(ValueError, match=r"\[IA-X-24\]$") as caught:
            read(folder)
    finally:
        (folder / name).write_bytes(usual)
    return str(caught.value)


def flipped(content: bytes, rng: random.Random, byte: int | None = None) -> bytes:
    changed = bytearray(content)
    changed[rng.randrange(len(changed)) if byte is None else byte] ^= 1 << rng.randrange(8)
    return bytes(changed)


@pytest.mark.parametrize("name", [INDEX, ARRAYS, SUMS])
def test_one_flipped_bit_is_found(name: str, copy: Path) -> None:
    assert len(read(copy).entries) > 400
    rng, content = random.Random(name), (copy / name).read_bytes()
    every = range(len(content)) if name == SUMS else [None] * 150
    for byte in [0, 7, 8, len(content) - 1, *every]:
        refused(copy, name, flipped(content, rng, byte))


@pytest.mark.parametrize("name", [INDEX, ARRAYS])
def test_one_flipped_bit_is_found_without_the_sums(name: str, copy: Path) -> None:
    """The index has a digest of itself and of the arrays, whoever repairs SHA256SUMS."""
    rng, usual = random.Random(name), {part: (copy / part).read_bytes() for part in (INDEX, ARRAYS)}
    for byte in [0, len(usual[name]) - 1, *[None] * 15]:
        changed = flipped(usual[name], rng, byte)
        (copy / SUMS).write_bytes(sums_bytes({**usual, name: changed}))
        assert SUMS not in refused(copy, name, changed)


def test_a_file_too_many_or_too_few_is_found(copy: Path) -> None:
    (copy / "more.txt").write_text("")
    with pytest.raises(ValueError, match=r"more\.txt: is no file of the set \[IA-X-24\]"):
        read(copy)
    (copy / "more.txt").unlink()
    (copy / ARRAYS).unlink()
    with pytest.raises(ValueError, match=r"vectors\.safetensors: cannot be read"):
        read(copy)
    with pytest.raises(ValueError, match="must be a folder"):
        read(copy / "nowhere")
