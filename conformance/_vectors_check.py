"""Judge what a program in any language answered to the golden vectors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ._safetensors import load, read_bytes
from ._vectors_index import VectorSet

__all__ = ["OUTCOMES", "Outcome", "check"]

OUTCOMES = ("pass", "fail", "missing", "not supported")
UNSUPPORTED = "not-supported.txt"
LARGEST = 2**28  # bytes of all results


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a vector found.

    Attributes
    ----------
    id, clause : str
    outcome : str
        One of OUTCOMES.
    reason : str
        Empty for a pass.
    worst : float or None
        The largest error in units of the tolerance; None where nothing was compared.
    """

    id: str
    clause: str
    outcome: str
    reason: str = ""
    worst: float | None = None


def check(folder: Path | str, vectors: VectorSet) -> list[Outcome]:
    """A verdict on every vector.

    Parameters
    ----------
    folder : path
        With results in any number of ``*.safetensors`` and perhaps a ``not-supported.txt``; see docs/vectors.md.
    vectors : VectorSet

    Raises
    ------
    ValueError
        If a file cannot be read, names what is not in the set, or says something twice (IA-X-24).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"`DIR` must be a folder of results; {folder} is none [IA-X-24]")
    results = _results(folder, vectors)
    excused = _excused(folder, vectors)
    twice = sorted(excused.keys() & results.keys())
    if twice:
        raise ValueError(f"{UNSUPPORTED}: {twice[0]} is listed, but there are results of it [IA-X-24]")
    outcomes = []
    for name, entry in vectors.entries.items():
        if name in excused:
            outcomes.append(Outcome(name, entry["clause"], "not supported", excused[name]))
        elif name not in results:
            outcomes.append(Outcome(name, entry["clause"], "missing", "there are no results of it"))
        else:
            outcomes.append(_judge(name, entry, results[name], vectors.arrays))
    return outcomes


def _results(folder: Path, vectors: VectorSet) -> dict[str, dict[str, np.ndarray]]:
    """The arrays that were found, by vector and name."""
    found: dict[str, dict[str, np.ndarray]] = {}
    left = LARGEST
    for path in sorted(folder.glob("*.safetensors")):
        arrays = load(path, left)
        left -= path.stat().st_size
        for tensor, array in arrays.items():
            name, part = "/".join(tensor.split("/")[:3]), "/".join(tensor.split("/")[3:])
            if name not in vectors.entries or part not in _asked(vectors.entries[name]):
                raise ValueError(f"{path.name}: {tensor} is no result that the set asks for [IA-X-24]")
            if part in found.setdefault(name, {}):
                raise ValueError(f"{path.name}: {tensor} is in another file too [IA-X-24]")
            found[name][part] = array
    return found


def _asked(entry: Mapping[str, Any]) -> list[str]:
    return [part for part in entry["expected"] if not part.startswith("bound/")]


def _excused(folder: Path, vectors: VectorSet) -> dict[str, str]:
    """The vectors that the program does not take, with its reasons."""
    path = folder / UNSUPPORTED
    if not path.exists():
        return {}
    try:
        text = read_bytes(path, 2**20).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{UNSUPPORTED}: must be UTF-8; byte {error.start} is not [IA-X-24]") from error
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        pattern, _, reason = line.strip().partition(" ")
        named = [name for name, entry in vectors.entries.items() if _matches(pattern, name, entry)]
        if not named or not reason.strip():
            raise ValueError(
                f"{UNSUPPORTED}: line {number} must be an id or its beginning, flag:FLAG or dtype:DTYPE, that occurs, "
                f"and a reason; got {line[:60]!a} [IA-X-24]"
            )
        for name in named:
            found.setdefault(name, reason.strip())
    return found


def _matches(pattern: str, name: str, entry: Mapping[str, Any]) -> bool:
    kind, _, word = pattern.partition(":")
    if kind == "flag":
        return word in entry["flags"]
    if kind == "dtype":
        return word == entry["dtype"]
    return name.startswith(pattern)


def _judge(
    name: str, entry: Mapping[str, Any], results: Mapping[str, np.ndarray], arrays: Mapping[str, np.ndarray]
) -> Outcome:
    worst, faults = 0.0, []
    for part in _asked(entry):
        if part not in results:
            return Outcome(name, entry["clause"], "missing", f"there is no {part}")
        wanted, bound = arrays[f"{name}/{part}"], arrays[f"{name}/bound/{part}"]
        for ratio, fault in _compare(part, results[part], wanted, bound):
            worst = max(worst, ratio)
            faults += [fault] if fault else []
    return Outcome(name, entry["clause"], "fail" if faults else "pass", "; ".join(faults), worst)


def _compare(part: str, got: np.ndarray, wanted: np.ndarray, bound: np.ndarray) -> Iterator[tuple[float, str]]:
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        yield (
            math.inf,
            f"{part} must be {wanted.dtype.name} of shape {wanted.shape}; got {got.dtype.name} of shape {got.shape}",
        )
        return
    if got.size == 0:
        return
    got, wanted = got.astype(np.float64), wanted.astype(np.float64)
    same = (got == wanted) | (np.isnan(got) & np.isnan(wanted))
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        ratio = np.where(same, 0.0, np.abs(got - wanted) / bound)
    ratio = np.where(np.isnan(ratio), math.inf, ratio)
    at = tuple(int(i) for i in np.unravel_index(int(np.argmax(ratio)), ratio.shape))
    fault = (
        f"{part}{list(at)} is {got[at]:.9g}, wanted {wanted[at]:.9g} within {bound[at]:.3g}: "
        f"{ratio[at]:.3g} times the tolerance"
    )
    yield float(ratio[at]), fault if ratio[at] > 1.0 else ""
