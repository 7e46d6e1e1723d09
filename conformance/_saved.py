"""Cases in files: a call that failed, as safetensors, which holds numbers and text and nothing that runs.

The arrays are those of the case as it was drawn (``drawn.query``, ...), of the call that the clause made of it
(``call.query``, ...; left out where it is the same), and of the call's true output and lse with their bounds
(``wanted.output``, ``bound.output``, ...). The metadata ``about`` says the rest, as JSON.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import ia_core
from ia_core import PositionBias
from ia_core._checks import check_call

from ._case import Case
from ._clause import CLAUSES
from ._implementation import DTYPES, Implementation
from ._safetensors import NAMES, loads, parse_json, read_bytes, saves
from ._truth import truth_of
from ._verdict import PROFILES, Verdict

__all__ = ["SavedCase", "read_case", "save_failure", "write_beside"]

FORMAT, VERSION = "indirect-attention-case", "1"
ARGUMENTS = ("query", "key", "value", "bias", "mask")
# The tuples of arrays that a position bias is made of.
_TREES: dict[str, Any] = {
    name: getattr(ia_core, name)
    for name in ("PositionBias", "OffsetMLP", "OffsetTable", "LinearOffset", "BoxMLP", "EdgeMLP", "Grid")
}


class SavedCase(NamedTuple):
    """What a file holds: the case as it was drawn, and what was said of it."""

    case: Case | None
    about: dict[str, Any]


def save_failure(
    folder: str | Path, verdict: Verdict, drawn: Case | None, implementation: Implementation, *, profile: str, seed: int
) -> Path:
    """Write what is needed to repeat a failure, and beside it a script that does so without this package.

    Parameters
    ----------
    folder : path
        Made if it is not there.
    verdict : Verdict
    drawn : Case or None
        What was drawn; ``verdict.failing`` is what the clause made of it.
    implementation : Implementation
    profile, seed
        Of the run.

    Returns
    -------
    Path
        Of the ``.safetensors``.
    """
    from ._replay_script import script_of

    arrays: dict[str, np.ndarray] = {}
    about = _about(verdict, implementation, profile, seed)
    call = verdict.failing or drawn
    about["drawn"] = None if drawn is None else _flatten(drawn, "drawn", arrays)
    about["call"] = None if call is None else _call(call, drawn, arrays)
    name = re.sub(r"[^A-Za-z0-9_.-]+", ".", f"{implementation.name}-{verdict.label}-{verdict.dtype}")
    path = Path(folder) / f"{name}.safetensors"
    write_beside(
        path, _with_metadata(saves(arrays), {"format": FORMAT, "version": VERSION, "about": json.dumps(about)})
    )
    write_beside(path.with_suffix(".py"), script_of(about, path.name).encode())
    return path


def read_case(path: str | Path) -> SavedCase:
    """The case in a file that :func:`save_failure` wrote.

    Raises
    ------
    ValueError
        If it is not such a file, or not whole (IA-X-24). Nothing in a file is ever executed.
    """
    try:
        return _read(Path(path))
    except (KeyError, RecursionError, TypeError, ValueError) as error:
        text = f"it has no {error}" if isinstance(error, KeyError) else str(error).removesuffix(" [IA-X-24]")
        raise ValueError(f"{path} is not a case that `ia-core conform --save` wrote: {text} [IA-X-24]") from error


def write_beside(path: Path, content: bytes) -> None:
    """To a file beside it first, so that nobody ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_bytes(content)
    beside.replace(path)


def _with_metadata(file: bytes, metadata: dict[str, str]) -> bytes:
    """The bytes of a safetensors file with text in its header, which stays padded so that arrays are aligned."""
    end = 8 + int.from_bytes(file[:8], "little")
    text = json.dumps({"__metadata__": metadata, **json.loads(file[8:end])}, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + file[end:]


def _about(verdict: Verdict, implementation: Implementation, profile: str, seed: int) -> dict[str, Any]:
    details = {name: value for name, value in verdict.details.items() if name not in ("printed", "saved")}
    return {
        "label": verdict.label,
        "title": CLAUSES[verdict.label].title,
        "dtype": verdict.dtype,
        "profile": profile,
        "seed": seed,
        "reason": verdict.reason,
        "details": json.loads(json.dumps(details, default=str)),
        "implementation": implementation.name,
        "target": implementation.target,
        "library": implementation.library,
        "layout": implementation.layout,
        "device": implementation.device,
        "supports": sorted(implementation.claims),
        "needs": sorted(CLAUSES[verdict.label].needs),
    }


def _call(call: Case, drawn: Case | None, arrays: dict[str, np.ndarray]) -> dict[str, Any] | None:
    """The call itself with its true output; None for one that no file holds, such as one with a list for an array."""
    added: dict[str, np.ndarray] = {}
    try:
        flat = _flatten(call, "call", added)
    except TypeError:
        return None
    same = drawn is not None and _same_arrays(added, arrays) and flat["scale"] == _number(drawn.scale)
    if same:
        flat, added = {**flat, "arrays": "drawn"}, {}
    try:
        check_call(**call.arguments)
        truth, bound = truth_of(call)
    except Exception:  # a call that is refused has no true output
        pass
    else:
        for name in ("output", "lse"):
            added[f"wanted.{name}"], added[f"bound.{name}"] = getattr(truth, name).high, getattr(bound, name)
    arrays.update(added)
    return flat


def _same_arrays(call: Mapping[str, np.ndarray], drawn: Mapping[str, np.ndarray]) -> bool:
    def bits(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return {n.partition(".")[2]: (a.dtype, a.shape, np.array(a, order="C").tobytes()) for n, a in arrays.items()}

    return bits(call) == bits(drawn)


def _flatten(case: Case, prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """A case as plain data, its arrays put aside under names that begin with the prefix."""
    trees = {name: _shape_of(getattr(case, name), f"{prefix}.{name}", arrays) for name in ARGUMENTS}
    return {"arrays": prefix, "seed": case.seed, "scale": _number(case.scale), "trees": trees}


def _shape_of(value: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    if value is None:
        return None
    if isinstance(value, np.ndarray):
        if value.dtype.name not in NAMES:
            raise TypeError(f"{name} is of {value.dtype}")
        arrays[name] = value
        return "array"
    if type(value).__name__ not in _TREES or not isinstance(value, tuple):
        raise TypeError(f"{name} is a {type(value).__name__}")
    fields = zip(type(value)._fields, value, strict=True)  # type: ignore[attr-defined]
    return {"type": type(value).__name__} | {
        field: _shape_of(part, f"{name}.{field}", arrays) for field, part in fields
    }


def _number(scale: Any) -> Any:
    """Every bit of it, in JSON."""
    if scale is None or type(scale) is int:
        return scale
    if type(scale) is not float:
        raise TypeError(f"scale is a {type(scale).__name__}")
    return scale.hex()


# Reading trusts nothing.


def _read(path: Path) -> SavedCase:
    data = read_bytes(path)
    arrays = {name: array.copy() for name, array in loads(data, path.name).items()}  # checks everything
    header = parse_json(data[8 : 8 + int.from_bytes(data[:8], "little")], "the header")
    metadata = header.get("__metadata__", {})
    if metadata.get("format") != FORMAT or metadata.get("version") != VERSION:
        raise ValueError(f"its metadata does not say {FORMAT}, version {VERSION}")
    about = json.loads(metadata["about"])
    _check_about(about)
    if about["drawn"] is None:
        return SavedCase(None, about)
    flat = about["drawn"]
    parts = {name: _build(flat["trees"][name], f"drawn.{name}", arrays) for name in ARGUMENTS}
    if type(flat["seed"]) is not int or flat["seed"] < 0:
        raise ValueError("its seed is not a natural number")
    scale = float.fromhex(flat["scale"]) if isinstance(flat["scale"], str) else flat["scale"]
    case = Case(**parts, scale=scale, seed=flat["seed"])
    check_call(**case.arguments)
    if case.dtype != about["dtype"]:
        raise ValueError(f"its query is of {case.dtype}, not {about['dtype']}")
    return SavedCase(case, about)


def _check_about(about: Any) -> None:
    texts = ("label", "dtype", "profile", "implementation", "target", "library", "layout", "reason")
    if not isinstance(about, dict) or not all(isinstance(about[name], str) for name in texts):
        raise ValueError("what it says about the case is no text")
    for name, known in (("label", CLAUSES), ("dtype", DTYPES), ("profile", PROFILES)):
        if about[name] not in known:
            raise ValueError(f"its {name} is {about[name][:80]}, which does not exist here")
    if type(about["seed"]) is not int or about["seed"] < 0:
        raise ValueError("the seed of its run is not a natural number")
    if not isinstance(about["supports"], list) or not all(isinstance(word, str) for word in about["supports"]):
        raise ValueError("its features are not words")
    if about["drawn"] is not None and not isinstance(about["drawn"], dict):
        raise ValueError("its case is not described")


def _build(tree: Any, name: str, arrays: Mapping[str, np.ndarray]) -> Any:
    if tree is None:
        return None
    if tree == "array":
        return arrays[name]
    if not isinstance(tree, dict) or tree.get("type") not in _TREES:
        raise ValueError(f"{name} is neither an array nor a bias")
    kind = _TREES[tree["type"]]
    if name.count(".") == 1 and kind is not PositionBias:
        raise ValueError(f"{name} is neither an array nor a PositionBias")
    return kind(*(_build(tree[field], f"{name}.{field}", arrays) for field in kind._fields))
