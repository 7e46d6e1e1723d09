"""The script that repeats a failing call without this package: NumPy, the user's framework, and nothing else."""

from __future__ import annotations

from typing import Any

__all__ = ["script_of"]


def script_of(about: dict[str, Any], file: str) -> str:
    """The source of the script for a file of :mod:`_saved`; what comes from elsewhere stands in it as literals.

    Examples
    --------
    >>> about = {"label": "IA-F-01", "title": "it holds", "reason": "it did not", "target": "m:f", "library": "numpy"}
    >>> about |= {"layout": "BHMD", "device": None, "dtype": "float32", "supports": [], "needs": []}
    >>> script_of(about, "case.safetensors").splitlines()[17]
    "FILE = 'case.safetensors'"
    """
    said = {
        "FILE": file,
        "TARGET": about["target"],
        "CLAUSE": f"{about['label']} {about['title']} ({about['dtype']})",
        "SEEN": about["reason"],
        "LIBRARY": about["library"],
        "LAYOUT": about["layout"],
        "DEVICE": about["device"],
        "SPREAD": "bias_broadcast" not in about["supports"],
        "LSE": "lse" in about["needs"],
    }
    lines = [f"{name} = {value!r}" for name, value in said.items()]
    return _SCRIPT.replace("# SAID\n", "\n".join(lines) + "\n")


_SCRIPT = '''\
"""A call of indirect attention that failed a clause of the conformance suite, repeated by itself.

    python THIS_FILE [module:function]

It reads the arrays that lie beside it, calls the function, and compares the output with the true one, elementwise and
within the bound that goes with these numbers. It needs NumPy and the library of the function. Where the clause is about
more than the output of this one call (a gradient, a second call, an error), `ia-core replay` repeats all of it.
"""

import importlib
import json
import os
import struct
import sys

import numpy as np

# SAID

def read(path):
    """Arrays and metadata of a safetensors file; bfloat16, which NumPy lacks, as float32 (exactly), with its names."""
    kinds = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "BOOL": "?"}
    kinds.update({f"{k}{8 * n}": f"<{k.lower()}{n}" for k in "IU" for n in (1, 2, 4, 8)})
    with open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        data = file.read()
    about = json.loads(header.pop("__metadata__")["about"])
    arrays, halves = {}, set()
    for name, tensor in header.items():
        start, end = tensor["data_offsets"]
        array = np.frombuffer(data[start:end], kinds[tensor["dtype"]]).reshape(tensor["shape"]).copy()
        if tensor["dtype"] == "BF16":
            array = (array.astype(np.uint32) << 16).view(np.float32).reshape(tensor["shape"])
            halves.add(name)
        arrays[name] = array
    return arrays, halves, about


def place(array, is_bfloat16=False):
    """A NumPy array as one of the library."""
    if LIBRARY == "torch":
        import torch

        made = torch.asarray(array, device=DEVICE)
        return made.to(torch.bfloat16) if is_bfloat16 else made
    if LIBRARY == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)
        made = jax.numpy.asarray(array, device=jax.devices(DEVICE)[0] if DEVICE else None)
        return made.astype("bfloat16") if is_bfloat16 else made
    if is_bfloat16:
        import ml_dtypes

        array = array.astype(ml_dtypes.bfloat16)
    return array if LIBRARY == "numpy" else importlib.import_module(LIBRARY).asarray(array)


def to_numpy(array):
    """An array of the library as float64."""
    if hasattr(array, "detach"):
        array = array.detach().cpu().double()
    elif hasattr(array, "get"):
        array = array.get()
    try:
        return np.asarray(array).astype(np.float64)
    except TypeError:
        return np.from_dlpack(array).astype(np.float64)


def swap(array):
    return np.swapaxes(array, -3, -2) if LAYOUT == "BMHD" else array


def arguments(arrays, halves, call):
    """Positional and keyword arguments of the call."""
    prefix = call["arrays"]
    found = {name: arrays.get(f"{prefix}.{name}") for name in ("query", "key", "value", "bias", "mask")}
    scores = (*found["query"].shape[:-1], found["key"].shape[-2])

    def put(name, array):
        return place(np.ascontiguousarray(array), f"{prefix}.{name}" in halves)

    def tree(shape, name):
        if shape == "array":
            return put(name, arrays[f"{prefix}.{name}"])
        import ia_core  # only where the bias is a PositionBias, which comes from there

        kind = getattr(ia_core, shape["type"])
        return kind(*(tree(shape[field], f"{name}.{field}") for field in kind._fields))

    keywords = {}
    for name in ("bias", "mask"):
        if found[name] is not None:
            keywords[name] = put(name, np.broadcast_to(found[name], scores) if SPREAD else found[name])
        elif call["trees"][name] is not None:
            keywords[name] = tree(call["trees"][name], name)
    scale = call["scale"]
    if scale is not None:
        keywords["scale"] = float.fromhex(scale) if isinstance(scale, str) else scale
    return [put(name, swap(found[name])) for name in ("query", "key", "value")], keywords


def function_of(target):
    sys.path.insert(0, os.getcwd())
    if ":" not in target:
        from ia_core.conformance.adapters import find

        return find(target).fn
    module, _, path = target.partition(":")
    found = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return getattr(found, "fn", found)  # of an adapter


def compare(what, got, arrays):
    """Print the worst element; whether it is within its bound."""
    wanted, bound = arrays[f"wanted.{what}"], arrays[f"bound.{what}"]
    if got.shape != wanted.shape:
        print(f"{what} has shape {got.shape}, wanted {wanted.shape}")
        return False
    with np.errstate(all="ignore"):
        equal = (got == wanted) | (np.isnan(got) & np.isnan(wanted))
        ratio = np.where(equal, 0.0, np.abs(got - wanted) / bound)
    ratio = np.where(np.isnan(ratio), np.inf, ratio)
    if ratio.size == 0:
        return True
    at = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
    print(f"{what}{[int(i) for i in at]}: got {got[at]:.17g}, wanted {wanted[at]:.17g}, bound {bound[at]:.3g}")
    print(f"the error is {ratio[at]:.3g} times the bound")
    return bool(ratio[at] <= 1)


def main():
    print(CLAUSE)
    print("seen in the run:", SEEN)
    arrays, halves, about = read(os.path.join(os.path.dirname(os.path.abspath(__file__)), FILE))
    if about["call"] is None:
        print("the call is not one that a file holds; repeat it with `ia-core replay`")
        return 2
    function = function_of(sys.argv[1] if len(sys.argv) > 1 else TARGET)
    positional, keywords = arguments(arrays, halves, about["call"])
    returned = function(*positional, **keywords, **({"return_lse": True} if LSE else {}))
    output, lse = returned if LSE else (returned, None)
    if "wanted.output" not in arrays:
        print("it returned; the reference refuses this call, so there is no true output")
        return 2
    output = to_numpy(output)
    good = compare("output", swap(output) if output.ndim >= 3 else output, arrays)
    if LSE:
        good = compare("lse", to_numpy(lse), arrays) and good
    if good:
        print("this output is right; where the clause is about more, `ia-core replay` repeats all of it")
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
'''
