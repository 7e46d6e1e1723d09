"""What ``ia-core vectors`` does: export, verify and check golden vectors (docs/vectors.md)."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ._vectors_check import OUTCOMES, Outcome, check
from ._vectors_index import GOLDEN, SPECIFICATION, VERSION, read

__all__ = ["run"]

SHOWN = 20


def run(options: argparse.Namespace) -> int:
    """The exit status of the command: 0 all well, 1 a vector failed or is missing, 2 a file or the call is wrong."""
    try:
        return {"export": _export, "verify": _verify, "check": _check}[options.action](options)
    except (ValueError, OSError) as error:
        print(f"ia-core: {error}", file=sys.stderr)
        return 2


def _export(options: argparse.Namespace) -> int:
    from ._vectors import export  # the oracle is needed for nothing else

    files = export(options.folder)
    for name, content in files.items():
        print(f"{len(content):>9} bytes  {Path(options.folder) / name}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    found = read(options.folder or GOLDEN)
    size = sum(array.nbytes for array in found.arrays.values())
    print(f"{found.folder} is whole: {len(found.entries)} vectors, {len(found.arrays)} arrays of {size} bytes")
    return 0


def _check(options: argparse.Namespace) -> int:
    outcomes = check(options.folder, read(options.vectors or GOLDEN))
    if options.json:
        _write(options.json, outcomes)
    counts = Counter(outcome.outcome for outcome in outcomes)
    for line in _table(outcomes):
        print(line)
    bad = [outcome for outcome in outcomes if outcome.outcome in ("fail", "missing")]
    shown = bad if options.all else bad[:SHOWN]
    for outcome in shown:
        print(f"{outcome.outcome:<8} {outcome.id}: {outcome.reason}")
    if len(bad) > len(shown):
        print(f"... and {len(bad) - len(shown)} more (--all shows them)")
    print(", ".join(f"{counts[kind]} {kind}" for kind in OUTCOMES))
    if not counts["pass"] and not bad:
        print("nothing was compared", file=sys.stderr)
    return int(bool(bad) or not counts["pass"])


def _table(outcomes: Sequence[Outcome]) -> list[str]:
    """A line for each clause; error in units of the tolerance."""
    lines = [f"{'clause':<9}" + "".join(f"{kind:>15}" for kind in OUTCOMES) + f"{'worst error':>15}"]
    for clause in sorted({outcome.clause for outcome in outcomes}):
        mine = [outcome for outcome in outcomes if outcome.clause == clause]
        counts = Counter(outcome.outcome for outcome in mine)
        compared = [outcome.worst for outcome in mine if outcome.worst is not None]
        worst = f"{max(compared):.3g}" if compared else "-"
        lines.append(f"{clause:<9}" + "".join(f"{counts[kind] or '-':>15}" for kind in OUTCOMES) + f"{worst:>15}")
    return lines


def _write(path: str, outcomes: Sequence[Outcome]) -> None:
    data = {
        "format": "indirect-attention vector verdicts",
        "version": VERSION,
        "specification": SPECIFICATION,
        "outcomes": dict(Counter(outcome.outcome for outcome in outcomes)),
        "vectors": [
            {
                "id": outcome.id,
                "outcome": outcome.outcome,
                "reason": outcome.reason,
                # JSON has no infinity
                "worst": "inf" if outcome.worst is not None and math.isinf(outcome.worst) else outcome.worst,
            }
            for outcome in outcomes
        ],
    }
    Path(path).write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
