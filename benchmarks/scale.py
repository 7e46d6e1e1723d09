"""Attention over several devices: what is compiled holds and moves, beside the formulas of scale_model.py.

    python benchmarks/scale.py            compiles for 1, 2, 4 and 8 devices (the processor, taken for so many)
    python benchmarks/scale.py --report   the tables of docs/results/scale.json anew

The ring is also run, for each number of devices in a process of its own, whose resident memory the system measures.
Writes docs/results/scale.json and docs/generated/scale.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
import numpy as np
from _hlo import Counts, count
from _machine import environment
from scale_model import Costs, Problem, chunked, heads, ring

from ia_core import OffsetMLP, PositionBias
from ia_core.backends import indirect_attention, use_backend
from ia_core.backends.jax_ring import ring_attention
from ia_core.conformance._files import write_whole

ROOT = Path(__file__).parents[1]
RESULTS, TABLES = ROOT / "docs/results/scale.json", ROOT / "docs/generated/scale.md"
DEVICES = (1, 2, 4, 8)
HIDDEN = 16
# Each device of eight still has several tiles of rows.
SMALL = Problem(M=8192, N=8192, H=8, D=64)
BIASED = dataclasses.replace(SMALL, position=4, hidden=HIDDEN)
GROUPED = dataclasses.replace(SMALL, Hk=2, D=32, Dv=96)
BATCH = dataclasses.replace(SMALL, B=8, H=1, Hk=1)
BATCH_BIASED = dataclasses.replace(BATCH, position=4, hidden=HIDDEN)
# What is predicted: bfloat16, a position bias, 32 heads of 128 on 8 key heads.
LARGE = {
    f"{size:.0e}": Problem(size, size, 32, 128, Hk=8, item=2, position=4, hidden=HIDDEN) for size in (10**6, 10**8)
}
MANY = (8, 64, 1024)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", action="store_true", help="only write the tables of what was measured")
    parser.add_argument("--resident", nargs=2, type=int, metavar=("DEVICES", "BACKWARD"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.resident:
        print(resident(options.resident[0], bool(options.resident[1])))
        return 0
    if not options.report:
        facts = {"date": datetime.date.today().isoformat(), "machine": environment(["jax", "jaxlib"])}
        facts |= {"problem": dataclasses.asdict(SMALL), "measured": list(measured()), "ran": list(ran())}
        write_whole(RESULTS, json.dumps(facts, indent=1) + "\n")
    facts = json.loads(RESULTS.read_text(encoding="utf-8"))
    write_whole(TABLES, "\n".join(report(facts)) + "\n")
    rows = facts["measured"]
    pairs = [(row["sent"], row["model_sent"]) for row in rows]
    pairs += [(row["moved"].get("all-reduce", 0), row["model_reduced"]) for row in rows]
    sent = max(abs(found / model - 1) if model else float(found) for found, model in pairs)
    memory = max(abs(row["model_memory"] / _memory(row) - 1) for row in rows if row["model_memory"])
    print(f"bytes moved differ from the model by at most {sent:.1%}, memory by {memory:.1%}")
    return int(max(sent, memory) > 0.05)


def measured() -> Any:
    """One row for each way of splitting, direction and number of devices."""
    for what, problem in (
        ("ring", SMALL),
        ("ring, position bias", BIASED),
        ("ring, grouped heads", GROUPED),
        ("heads", SMALL),
        ("batch", BATCH),
        ("heads, position bias", BIASED),
        ("heads in shard_map, position bias", BIASED),
        ("batch, position bias", BATCH_BIASED),
        ("batch in shard_map, position bias", BATCH_BIASED),
        ("queries", SMALL),
    ):
        for backward, devices in itertools.product((False, True), DEVICES):
            counts, memory = compiled(what, problem, devices, backward)
            model = model_of(what, problem, devices, backward)
            print(f"{what}, {devices} devices, {'backward' if backward else 'forward'}", file=sys.stderr, flush=True)
            # What the compiler makes of a network's gradients that it sums in every tile has no formula for its memory.
            unknown = backward and problem.hidden and _axis(what) < 2 and "shard_map" not in what
            yield {
                "what": what,
                "backward": backward,
                "devices": devices,
                "sent": counts.moved.get("collective-permute", 0),
                "model_sent": model.sent,
                "moved": counts.moved,
                "model_reduced": model.reduced,
                "runs": counts.runs,
                "flops": counts.flops,
                "model_flops": model.flops,
                "arguments": memory.argument_size_in_bytes,
                "output": memory.output_size_in_bytes,
                "temporaries": memory.temp_size_in_bytes,
                "model_held": model.held,
                "model_memory": None if unknown else model.memory,
            }


def ran() -> Any:
    """Of rings that ran: how much larger all devices together made a process."""
    for backward, devices in itertools.product((False, True), DEVICES):
        words = [sys.executable, __file__, "--resident", str(devices), str(int(backward))]
        said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        print(f"ring that ran, {devices} devices, {'backward' if backward else 'forward'}", file=sys.stderr, flush=True)
        yield {"devices": devices, "backward": backward, "bytes": int(said)}


def resident(devices: int, backward: bool) -> int:
    """By how much arrays and one call of the ring make this process larger; what compiling took is not in it."""
    function, shapes = _function("ring", SMALL, devices, backward)
    before = _status("VmRSS")
    arrays = [
        jax.make_array_from_callback(shape.shape, shape.sharding, functools.partial(_drawn, shape.shape, seed))
        for seed, shape in enumerate(shapes[:3])
    ]
    given = _status("VmRSS") - before
    done = jax.jit(function).lower(*arrays, None).compile()
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the largest size so far is forgotten
    jax.block_until_ready(done(*arrays, None))
    return given + _status("VmHWM") - before


def _drawn(shape: tuple[int, ...], seed: int, index: Any) -> np.ndarray:
    sizes = [len(range(*part.indices(size))) for part, size in zip(index, shape, strict=True)]
    return np.random.default_rng(seed).standard_normal(sizes, np.float32)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def model_of(what: str, problem: Problem, devices: int, backward: bool) -> Costs:
    if what.startswith("ring"):
        return ring(problem, devices, backward=backward)
    if what == "queries":
        return queries(problem, devices, backward)
    return heads(problem, devices, backward=backward, batch=_axis(what) == 0, mapped="shard_map" in what)


def queries(p: Problem, devices: int, backward: bool) -> Costs:
    """Of split queries the whole scores of their rows: the reference, whose rows the compiler can keep apart."""
    flops = p.products / devices * (3 if backward else 1)
    held = (p.of_queries + p.of_output) / devices + p.of_keys(p.item)
    held += (p.of_queries - p.of_output) / devices + p.of_keys(p.item) if backward else 0
    scores = (4 if backward else 2) * p.B * p.H * p.M // devices * p.N * p.work
    return Costs(flops, 0.0, held, scores, p.of_keys(p.work) if backward and devices > 1 else 0.0)


def compiled(what: str, problem: Problem, devices: int, backward: bool) -> tuple[Counts, Any]:
    """Counts and memory of one device, of a function that is compiled and never run."""
    function, shapes = _function(what, problem, devices, backward)
    done = jax.jit(function).lower(*shapes).compile()
    return count(done.as_text()), done.memory_analysis()


def _function(what: str, problem: Problem, devices: int, backward: bool) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """What is compiled, and the shapes that it takes."""
    mesh = jax.make_mesh(
        (devices,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices]
    )

    def call(q: Any, k: Any, v: Any, bias: Any) -> Any:
        if what.startswith("ring"):
            return ring_attention(q, k, v, bias=bias, mesh=mesh, axis="devices", return_lse=True)
        with use_backend("reference" if what == "queries" else "jax-jit"):
            return indirect_attention(q, k, v, bias=bias, return_lse=True)

    if "shard_map" in what:
        call = _mapped(call, _axis(what), mesh)

    def loss(*arrays: Any) -> Any:
        output, lse = call(*arrays)
        return jnp.sum(output * output) + jnp.sum(lse)

    function = jax.grad(loss, argnums=(0, 1, 2, 3) if problem.position else (0, 1, 2)) if backward else call
    return function, _arrays(what, problem, mesh)


def _mapped(call: Callable[..., Any], axis: int, mesh: Any) -> Callable[..., Any]:
    """A call under shard_map, whose gradients of what is whole are summed once, behind it."""
    whole, split = jax.P(), jax.P(*(None,) * axis, "devices")
    f = whole if axis == 0 else OffsetMLP(whole, whole, jax.P(None, "devices"), jax.P("devices"))
    specs = (split, split, split, PositionBias(f, whole, whole))
    return jax.shard_map(call, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False)


def _axis(what: str) -> int:
    """The axis of the queries that is split."""
    return {"batch": 0, "heads": 1}.get(what.partition(",")[0].partition(" ")[0], 2)


def _arrays(what: str, p: Problem, mesh: Any) -> tuple[Any, ...]:
    """Shapes of query, key, value and bias, split as the way of splitting has it."""

    def shape(*sizes: int, at: int | None = None) -> Any:
        spec = jax.P() if at is None else jax.P(*(None,) * at, "devices")
        return jax.ShapeDtypeStruct(sizes, jnp.float32, sharding=jax.sharding.NamedSharding(mesh, spec))

    split = _axis(what)
    q, k, v = ((p.B, p.H, p.M, p.D), (p.B, p.Hk, p.N, p.D), (p.B, p.Hk, p.N, p.Dv))
    of_keys = None if what == "queries" else split
    bias = None
    if p.position:
        f = OffsetMLP(*(shape(*sizes) for sizes in ((HIDDEN,), (HIDDEN,), (HIDDEN, p.H), (p.H,))))
        at = 0 if what.startswith("ring") else None
        bias = PositionBias(f, shape(p.M, at=at), shape(p.N, at=at))
    return shape(*q, at=split), shape(*k, at=of_keys), shape(*v, at=of_keys), bias


def report(facts: dict[str, Any]) -> list[str]:
    """The tables, in Markdown."""
    p = facts["problem"]
    versions = ", ".join(f"{name} {value}" for name, value in facts["machine"].items() if name != "processor")
    lines = [
        "% Written by benchmarks/scale.py from docs/results/scale.json.",
        "",
        f"{facts['date']}, {facts['machine']['processor']} processors taken for eight devices, {versions}; "
        f"M = {p['M']}, N = {p['N']}, {p['H']} heads of {p['D']}, float32. MiB on one device, as compiled.",
        "",
        "| | devices | sent | model | other collectives | model | GFLOP | model | given and returned | temporaries | "
        "model of both | off by | both times devices, over one device |",
        "| --- " * 13 + "|",
    ]
    ones = {(row["what"], row["backward"]): _memory(row) for row in facts["measured"] if row["devices"] == 1}
    for row in facts["measured"]:
        share = _memory(row) * row["devices"] / ones[row["what"], row["backward"]]
        others = ", ".join(
            f"{row['runs'][name]} {name} ({_size(size)}{' together' if row['runs'][name] > 1 else ''})"
            for name, size in row["moved"].items()
            if "permute" not in name
        )
        given = row["arguments"] + row["output"]
        cells = [
            f"{row['what']}, {'with gradients' if row['backward'] else 'forward'}",
            row["devices"],
            _mib(row["sent"]),
            _mib(row["model_sent"]),
            others or "none",
            _size(row["model_reduced"]) if row["model_reduced"] else "none",
            f"{row['flops'] / 1e9:.2f}",
            f"{row['model_flops'] / 1e9:.2f}",
            _mib(given),
            _mib(row["temporaries"]),
            *(
                (_mib(row["model_memory"]), f"{row['model_memory'] / _memory(row) - 1:+.1%}")
                if row["model_memory"]
                else ("not modelled", "")
            ),
            f"{share:.2f}",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return [*lines, "", *resident_report(facts["ran"]), "", *predicted()]


def resident_report(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "The first two rings, run: MiB of resident memory for each device, arrays and results included, and beside one "
        "device what all devices take together:",
        "",
        f"| devices | {' | '.join(map(str, DEVICES))} |",
        "| --- " * (len(DEVICES) + 1) + "|",
    ]
    for backward in (False, True):
        sizes = {row["devices"]: row["bytes"] for row in rows if row["backward"] == backward}
        cells = [f"{_mib(sizes[n] / n)} ({sizes[n] / sizes[1]:.2f})" for n in DEVICES]
        lines.append(f"| {'with gradients' if backward else 'forward'} | {' | '.join(cells)} |")
    return lines


def predicted() -> list[str]:
    """What the model says of lengths that nothing here can hold."""
    lines = [
        f"Predicted for bfloat16, 32 heads of 128 on 8 key heads, a position bias of {HIDDEN} hidden units; of one "
        "device, forward, and in brackets with gradients:",
        "",
        "| tokens | devices | PFLOP | sent, GiB | memory, GiB | sent for each FLOP, bytes | memory by heads, GiB |",
        "| --- " * 7 + "|",
    ]
    for name, problem in LARGE.items():
        for devices in MANY:
            one, both = ring(problem, devices), ring(problem, devices, backward=True)
            by_heads = f"{heads(problem, devices).memory / 2**30:.1f}" if problem.Hk % devices == 0 else "too few heads"
            cells = [
                name,
                devices,
                f"{one.flops / 1e15:.3g} ({both.flops / 1e15:.3g})",
                f"{one.sent / 2**30:.3g} ({both.sent / 2**30:.3g})",
                f"{one.memory / 2**30:.3g} ({both.memory / 2**30:.3g})",
                f"{one.sent / one.flops:.2g}",
                by_heads,
            ]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    blocks = [chunked(LARGE["1e+06"], devices, 4096, 4096) for devices in MANY]
    reads = ", ".join(f"{cost.sent / 2**40:.3g} TiB" for cost in blocks)
    lines += [
        "",
        f"In blocks of 4096 queries and 4096 keys, as Dask and Cubed compute it, a worker of {MANY[0]}, {MANY[1]} or "
        f"{MANY[2]} reads and writes {reads} for 1e+06 tokens, and holds {blocks[0].memory / 2**20:.0f} MiB at a time, "
        "most of it states that are merged, if it goes through the tree depth first.",
    ]
    return lines


def _memory(row: dict[str, Any]) -> int:
    return int(row["arguments"] + row["output"] + row["temporaries"])


def _mib(size: float) -> str:
    return f"{size / 2**20:.2f}"


def _size(size: float) -> str:
    return f"{size / 2**20:.2f} MiB" if size >= 2**20 else f"{size:.0f} bytes"


if __name__ == "__main__":
    sys.exit(main())
