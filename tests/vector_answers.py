"""Answer golden vectors in NumPy, from what the files say alone."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np

import ia_core
from ia_core.conformance._vectors_index import VectorSet


def answers(
    vectors: VectorSet,
    function: Callable[..., Any] = ia_core.indirect_attention,
    vjp: Callable[..., Any] = ia_core.indirect_attention_vjp,
    *,
    dense: bool = True,
    names: Collection[str] | None = None,
) -> dict[str, np.ndarray]:
    """Results by tensor name; a position bias in its dense form, or evaluated."""
    found: dict[str, np.ndarray] = {}
    for name, entry in vectors.entries.items():
        if names is not None and name not in names:
            continue
        given = {part: vectors.arrays[f"{name}/{part}"] for part in entry["inputs"]}
        keywords: dict[str, Any] = {}
        if "bias" in given:
            positions = {part[9:]: array for part, array in given.items() if part.startswith("position/")}
            keywords["bias"] = given["bias"] if dense or not positions else position_bias(positions)
        if "mask" in given:
            keywords["mask"] = given["mask"].astype(bool)
        if entry["scale"]["given"]:
            keywords["scale"] = float.fromhex(entry["scale"]["hex"])
        arrays = [given[part] for part in ("query", "key", "value")]
        with np.errstate(all="ignore"):
            if "lse" in entry["expected"]:
                found[f"{name}/output"], found[f"{name}/lse"] = function(*arrays, return_lse=True, **keywords)
            else:
                found[f"{name}/output"] = function(*arrays, **keywords)
            if "cotangent" in given:
                if "lse_cotangent" in given:
                    keywords["lse_cotangent"] = given["lse_cotangent"]
                gradients = vjp(*arrays, given["cotangent"], **keywords)
                for part in ("query", "key", "value", "bias"):
                    if f"grad/{part}" in entry["expected"]:
                        found[f"{name}/grad/{part}"] = getattr(gradients, part)
    return found


def position_bias(parts: dict[str, np.ndarray]) -> ia_core.PositionBias:
    """The bias that tensors named position/... describe."""
    where = parts["query_positions"]
    network = ("w1", "b1", "w2", "b2")
    if "x/w1" in parts:
        edges = [ia_core.EdgeMLP(*(parts[f"{axis}/{name}"] for name in network)) for axis in "xy"]
        grid = ia_core.Grid(parts["value_positions/x"], parts["value_positions/y"])
        return ia_core.PositionBias(ia_core.BoxMLP(*edges), where, grid)
    if "values" in parts:
        function: Any = ia_core.OffsetTable(parts["values"])
    elif "slopes" in parts:
        function = ia_core.LinearOffset(parts["slopes"])
    else:
        function = ia_core.OffsetMLP(*(parts[name] for name in network))
    return ia_core.PositionBias(function, where, parts["value_positions"])
