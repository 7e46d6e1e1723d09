"""Attention over several devices: what is compiled holds and moves, beside the formulas of scale_model.py.

    python benchmarks/scale.py            compiles for 1, 2, 4 and 8 devices (the processor, taken for so many)
    python benchmarks/scale.py --report   the tables of docs/results/scale.json anew

Writes docs/results/scale.json and docs/generated/scale.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
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
BIASED = dataclasses.replace(SMALL, position=4)
# What is predicted: bfloat16, a position bias, 32 heads of 128 on 8 key heads.
LARGE = {f"{size:.0e}": Problem(size, size, 32, 128, Hk=8, item=2, position=4) for size in (10**6, 10**8)}
MANY = (8, 64, 1024)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", action="store_true", help="only write the tables of what was measured")
    options = parser.parse_args()
    if not options.report:
        facts = {"date": datetime.date.today().isoformat(), "machine": environment(["jax", "jaxlib"])}
        facts |= {"problem": dataclasses.asdict(SMALL), "measured": list(measured())}
        write_whole(RESULTS, json.dumps(facts, indent=1) + "\n")
    facts = json.loads(RESULTS.read_text(encoding="utf-8"))
    write_whole(TABLES, "\n".join(report(facts)) + "\n")
    worst = max((abs(row["sent"] / row["model_sent"] - 1) for row in facts["measured"] if row["model_sent"]), default=0)
    print(f"bytes moved differ from the model by at most {worst:.1%}")
    return int(worst > 0.05)


def measured() -> Any:
    """One row for each way of splitting, direction and number of devices."""
    for what, problem, backward in (
        ("ring", SMALL, False),
        ("ring", SMALL, True),
        ("ring, position bias", BIASED, False),
        ("ring, position bias", BIASED, True),
        ("heads", SMALL, False),
        ("heads", SMALL, True),
    ):
        for devices in DEVICES:
            counts, memory = compiled(what, problem, devices, backward)
            model = model_of(what, problem, devices, backward)
            print(f"{what}, {devices} devices, {'backward' if backward else 'forward'}", file=sys.stderr, flush=True)
            yield {
                "what": what,
                "backward": backward,
                "devices": devices,
                "sent": counts.moved.get("collective-permute", 0),
                "model_sent": model.sent,
                "moved": counts.moved,
                "runs": counts.runs,
                "flops": counts.flops,
                "model_flops": model.flops,
                "arguments": memory.argument_size_in_bytes,
                "output": memory.output_size_in_bytes,
                "temporaries": memory.temp_size_in_bytes,
                "model_held": model.held,
                "model_memory": model.memory,
            }


def model_of(what: str, problem: Problem, devices: int, backward: bool) -> Costs:
    return (
        ring(problem, devices, backward=backward)
        if what.startswith("ring")
        else heads(problem, devices, backward=backward)
    )


def compiled(what: str, problem: Problem, devices: int, backward: bool) -> tuple[Counts, Any]:
    """Counts and memory of one device, of a function that is compiled and never run."""
    mesh = jax.make_mesh(
        (devices,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices]
    )

    def shape(*sizes: int, at: int | None = None) -> Any:
        spec = jax.P() if at is None else jax.P(*(None,) * at, "devices")
        return jax.ShapeDtypeStruct(sizes, jnp.float32, sharding=jax.sharding.NamedSharding(mesh, spec))

    split = 1 if what.startswith("ring") else 0
    p = problem
    q, k, v = (shape(h, n, d, at=split) for h, n, d in ((p.H, p.M, p.D), (p.Hk, p.N, p.D), (p.Hk, p.N, p.Dv)))
    bias = None
    if p.position:
        f = OffsetMLP(*(shape(*sizes) for sizes in ((HIDDEN,), (HIDDEN,), (HIDDEN, p.H), (p.H,))))
        bias = PositionBias(f, shape(p.M, at=0), shape(p.N, at=0))

    def call(q: Any, k: Any, v: Any, bias: Any) -> Any:
        if split:
            return ring_attention(q, k, v, bias=bias, mesh=mesh, axis="devices", return_lse=True)
        with use_backend("jax-jit"):
            return indirect_attention(q, k, v, bias=bias, return_lse=True)

    def loss(*arrays: Any) -> Any:
        output, lse = call(*arrays)
        return jnp.sum(output * output) + jnp.sum(lse)

    function = jax.grad(loss, argnums=(0, 1, 2, 3) if p.position else (0, 1, 2)) if backward else call
    done = jax.jit(function).lower(q, k, v, bias).compile()
    return count(done.as_text()), done.memory_analysis()


def report(facts: dict[str, Any]) -> list[str]:
    """The tables, in Markdown."""
    p = facts["problem"]
    versions = ", ".join(f"{name} {value}" for name, value in facts["machine"].items() if name != "processor")
    lines = [
        "% Written by benchmarks/scale.py from docs/results/scale.json.",
        "",
        f"{facts['date']}, {facts['machine']['processor']} processors taken for eight devices, {versions}; "
        f"M = {p['M']}, N = {p['N']}, {p['H']} heads of {p['D']}, float32. MiB on one device, as compiled; nothing "
        "was run.",
        "",
        "| | devices | sent | model | other collectives | GFLOP | model | given and returned | temporaries | model of "
        "both | both times devices, over one device |",
        "| --- " * 11 + "|",
    ]
    ones = {(row["what"], row["backward"]): _memory(row) for row in facts["measured"] if row["devices"] == 1}
    for row in facts["measured"]:
        share = _memory(row) * row["devices"] / ones[row["what"], row["backward"]]
        others = ", ".join(
            f"{row['runs'][name]} {name} ({_size(size)})"
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
            f"{row['flops'] / 1e9:.2f}",
            f"{row['model_flops'] / 1e9:.2f}",
            _mib(given),
            _mib(row["temporaries"]),
            _mib(row["model_memory"]),
            f"{share:.2f}",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return [*lines, "", *predicted()]


def predicted() -> list[str]:
    """What the model says of lengths that nothing here can hold."""
    lines = [
        "Predicted for bfloat16, 32 heads of 128 on 8 key heads, a position bias; of one device, forward, and in "
        "brackets with gradients:",
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
        f"{MANY[2]} reads and writes {reads} for 1e+06 tokens, and holds {blocks[0].memory / 2**20:.0f} MiB at a time.",
    ]
    return lines


def _memory(row: dict[str, Any]) -> int:
    return int(row["arguments"] + row["output"] + row["temporaries"])


def _mib(size: float) -> str:
    return f"{size / 2**20:.2f}"


def _size(size: float) -> str:
    return f"{size / 2**20:.2f} MiB" if size >= 2**16 else f"{size:.0f} bytes"


if __name__ == "__main__":
    sys.exit(main())
