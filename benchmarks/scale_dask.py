"""Attention on Dask and Cubed within a promise about memory: peak memory, and the tiled computation beside it.

    python benchmarks/scale_dask.py dask            two worker processes of 1 GiB each, 65536 tokens, 8 heads of 64
    python benchmarks/scale_dask.py cubed           the same on Cubed, allowed_mem of 1 GiB, two processes
    python benchmarks/scale_dask.py dask --tokens 8192 [--out FILE]

Arrays are drawn in blocks on the workers, from the seed and the block's place, so that no worker ever has more of them
than it works on. The result is compared with the path for NumPy on a row of every query block, within twice the
smallest bound that the conformance suite has for four of them. Adds a row to docs/results/scale_dask.json, or to FILE.
The exit status is 0 only if no worker had more memory than its limit, none was started anew, and no row is off.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from _machine import environment

from ia_core import OffsetMLP, PositionBias
from ia_core.backends import indirect_attention
from ia_core.conformance._case import Case
from ia_core.conformance._files import write_whole
from ia_core.conformance._truth import wide_truth_of

ROOT = Path(__file__).parents[1]
RESULTS, TABLES = ROOT / "docs/results/scale_dask.json", ROOT / "docs/generated/scale_dask.md"
H, D, SEED, HIDDEN = 8, 64, 0, 16
WORKERS, LIMIT = 2, 2**30
# Rows whose bound is computed, and seconds between two looks at the memory.
ROWS, EVERY = 4, 0.05


def block(name: int, start: int, size: int) -> np.ndarray:
    """Rows start .. start + size - 1 of query (0), key (1) or value (2), which are the same in blocks of every size."""
    parts = []
    for number in range(start // 256, -(-(start + size) // 256)):
        parts.append(np.random.default_rng([SEED, name, number]).standard_normal((H, 256, D), np.float32))
    whole = np.concatenate(parts, axis=1)
    return whole[:, start % 256 : start % 256 + size]


def network() -> list[np.ndarray]:
    rng = np.random.default_rng([SEED, 9])
    shapes = ((HIDDEN,), (HIDDEN,), (HIDDEN, H), (H,))
    w1, b1, w2, b2 = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    return [w1 / 1000, b1, w2, b2]  # offsets are thousands


class Watch(threading.Thread):
    """The largest memory of each process that ``pids`` gives, the system's own high-water mark where there is one."""

    def __init__(self, pids: Any) -> None:
        super().__init__(daemon=True)
        self.pids, self.peaks, self.over = pids, {}, threading.Event()

    def run(self) -> None:
        while not self.over.wait(EVERY):
            for pid in self.pids():
                try:
                    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
                except OSError:  # it is gone
                    continue
                found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")]
                self.peaks[pid] = max(self.peaks.get(pid, 0), *found, 0)

    def stop(self) -> list[int]:
        self.over.set()
        self.join()
        return sorted(self.peaks.values())


def on_dask(tokens: int, chunk: int, out: Path) -> dict[str, Any]:
    """Two worker processes with a limit each; one plain ``compute``."""
    import dask
    import dask.array as da
    from distributed import Client, LocalCluster

    def drawn(name: int) -> Any:
        def of_block(block_info: Any = None) -> np.ndarray:
            (start, stop) = block_info[None]["array-location"][1]
            return block(name, start, stop - start)

        chunks = ((H,), (chunk,) * (tokens // chunk), (D,))
        return da.map_blocks(of_block, chunks=chunks, dtype=np.float32, meta=np.empty((0, 0, 0), np.float32))

    f = OffsetMLP(*(da.from_array(array, chunks=array.shape) for array in network()))
    positions = da.arange(tokens, chunks=chunk)
    output = indirect_attention(drawn(0), drawn(1), drawn(2), bias=PositionBias(f, positions, positions))
    dask.config.set({"distributed.worker.memory.terminate": 0.98})
    with (
        LocalCluster(n_workers=WORKERS, threads_per_worker=1, memory_limit=LIMIT, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        pids = list(client.run(os.getpid).values())
        watch = Watch(lambda: pids)
        watch.start()
        began = time.monotonic()
        found = output.compute()
        seconds = time.monotonic() - began
        peaks = watch.stop()
        same = pids == list(client.run(os.getpid).values())
    np.save(out, found)
    return {"seconds": seconds, "peaks": peaks, "limit": LIMIT, "restarted": not same}


def on_cubed(tokens: int, chunk: int, out: Path) -> dict[str, Any]:
    """Cubed's executor of processes; the output goes to a Zarr store, and from there to the file."""
    import cubed
    import cubed.array_api as xp

    with tempfile.TemporaryDirectory() as work:
        spec = cubed.Spec(
            work,
            allowed_mem=LIMIT,
            reserved_mem="300MB",
            executor_name="processes",
            executor_options={"max_workers": WORKERS},
        )

        def drawn(name: int) -> Any:
            def of_block(some: np.ndarray, block_id: Any = None) -> np.ndarray:
                return block(name, block_id[1] * chunk, chunk)

            base = xp.zeros((H, tokens, D), dtype=xp.float32, chunks=(H, chunk, D), spec=spec)
            return cubed.map_blocks(of_block, base, dtype=np.float32)

        f = OffsetMLP(*(cubed.from_array(array, chunks=array.shape, spec=spec) for array in network()))
        positions = xp.arange(tokens, chunks=(chunk,), spec=spec)
        output = indirect_attention(drawn(0), drawn(1), drawn(2), bias=PositionBias(f, positions, positions))
        projected = output.plan(optimize_graph=True).max_projected_mem
        own = os.getpid()
        watch = Watch(lambda: _children(own))
        watch.start()
        began = time.monotonic()
        found = output.compute()
        seconds = time.monotonic() - began
        peaks = watch.stop()[-WORKERS:]
        np.save(out, found)
    return {"seconds": seconds, "peaks": peaks, "limit": LIMIT, "projected": int(projected)}


def _children(pid: int) -> list[int]:
    from ia_core.conformance._process import descendants

    return descendants(pid)


def compared(out: Path, tokens: int, chunk: int) -> float:
    """The largest difference from the path for NumPy on a row of every block, over the smallest bound of both on some.

    A bound is a sum over all keys in double precision, hence of few rows.
    """
    store = np.load(out, mmap_mode="r")
    starts = np.arange(0, tokens, chunk)
    rows = np.random.default_rng(SEED).integers(starts, np.minimum(starts + chunk, tokens))
    few = np.linspace(0, rows.size - 1, min(ROWS, rows.size)).astype(int)
    key, value = (np.concatenate([block(n, j0, 256) for j0 in range(0, tokens, 256)], axis=1) for n in (1, 2))
    query = np.concatenate([block(0, int(i), 1) for i in rows], axis=1)
    bias = PositionBias(OffsetMLP(*network()), rows, np.arange(tokens))
    tiled = indirect_attention(query, key, value, bias=bias)
    worst = 0.0
    for head in range(H):
        some = slice(head, head + 1)
        w1, b1, w2, b2 = network()
        of_head = PositionBias(OffsetMLP(w1, b1, w2[:, some], b2[some]), rows[few], bias.value_positions)
        _, bound = wide_truth_of(Case(query[some, few], key[some], value[some], of_head))
        difference = np.abs(store[some][:, rows].astype(np.float64) - tiled[some])
        worst = max(worst, float(np.max(difference) / (2 * np.min(bound.output))))
    return worst


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=("dask", "cubed"))
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--chunk", type=int, default=2048)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    for library in {"dask": ("dask", "distributed"), "cubed": ("cubed",)}[options.engine]:
        if importlib.util.find_spec(library) is None:
            parser.error(f"{library} is not installed: pip install 'indirect-attention[{options.engine}]'")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "output.npy"
        found = (on_dask if options.engine == "dask" else on_cubed)(options.tokens, options.chunk, out)
        found["error_in_bounds"] = compared(out, options.tokens, options.chunk)
    row = {"engine": options.engine, "tokens": options.tokens, "chunk": options.chunk, "H": H, "D": D, **found}
    row |= {"date": datetime.date.today().isoformat(), "machine": environment(["numpy", "dask", "cubed"])}
    print(json.dumps(row, indent=1))
    rows = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else []
    others = [
        r for r in rows if (r["engine"], r["tokens"], r["chunk"]) != (options.engine, options.tokens, options.chunk)
    ]
    rows = sorted([*others, row], key=lambda r: (r["engine"], r["tokens"]))
    write_whole(options.out, json.dumps(rows, indent=1) + "\n")
    if options.out == RESULTS:
        write_whole(TABLES, "\n".join(report(rows)) + "\n")
    return int(max(found["peaks"]) > LIMIT or found["error_in_bounds"] > 1 or found.get("restarted", False))


def report(rows: list[dict[str, Any]]) -> list[str]:
    """The table, in Markdown."""
    lines = [
        "% Written by benchmarks/scale_dask.py from docs/results/scale_dask.json.",
        "",
        "| engine | tokens | chunk | seconds | largest memory of a worker, MiB | limit, MiB | scores would be, GiB "
        "| difference from the tiled path, in bounds | date and machine |",
        "| --- " * 9 + "|",
    ]
    for row in rows:
        cells = [
            row["engine"],
            row["tokens"],
            row["chunk"],
            f"{row['seconds']:.0f}",
            ", ".join(f"{peak / 2**20:.0f}" for peak in row["peaks"]),
            f"{row['limit'] / 2**20:.0f}",
            f"{4 * row['H'] * row['tokens'] ** 2 / 2**30:.1f}",
            f"{row['error_in_bounds']:.2g}",
            f"{row['date']}, {row['machine']['processor']}",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
