"""What `ia-core conform --json` found on a device, in one record.

    python benchmarks/conformance_record.py gather REPORT.json ... [--commit TEXT] [--out FILE]
    python benchmarks/conformance_record.py report [--out FILE]

``gather`` runs where the reports were made, so that it can name the device, and adds them to FILE with the commit that
was judged, as its caller names it: for each implementation and dtype, how many clauses had which outcome, the largest
error / bound and where, and every failure. A verdict that FILE has is replaced. ``report`` writes the table named like
FILE in docs/generated. Of one implementation the clauses may be spread over several reports; a clause that none of them
judged is missing, and the table says how many were judged.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from ia_core.conformance._files import write_whole

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs/results/conformance_gpu.json"
OUTCOMES = ("pass", "deviation", "not supported")
Record = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    what = parser.add_subparsers(dest="what", required=True)
    add = what.add_parser("gather")
    add.add_argument("reports", type=Path, nargs="+")
    add.add_argument("--commit", default="")
    for sub in (add, what.add_parser("report")):
        sub.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    return gather(options) if options.what == "gather" else report(options.out)


def gather(options: argparse.Namespace) -> int:
    out: Path = options.out
    record: Record = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {"runs": []}
    for path in options.reports:
        data = json.loads(path.read_text(encoding="utf-8"))
        about = {key: data[key] for key in ("date", "machine", "versions", "profile", "seed", "limits", "complete")}
        about["machine"]["device"] = device()
        about["commit"] = options.commit
        verdicts = [
            [v["implementation"], v["clause"], v["dtype"], v["outcome"], _short(v["margin"]), _why(v)]
            for v in data["verdicts"]
        ]
        key = [sorted({v[0] for v in verdicts}), sorted({v[1] for v in verdicts})]
        record["runs"] = [run for run in record["runs"] if run["key"] != key]
        record["runs"].append({"key": key, "about": about, "verdicts": verdicts})
    text = json.dumps(record, indent=None, separators=(",", ":")).replace('{"key"', '\n{"key"').replace(',["', ',\n["')
    write_whole(out, text + "\n")
    return report(out, write=False)


def report(out: Path, *, write: bool = True) -> int:
    record = json.loads(out.read_text(encoding="utf-8"))
    found: dict[tuple[str, str], list[list[Any]]] = {}
    for run in record["runs"]:
        for verdict in run["verdicts"]:
            found.setdefault((verdict[0], verdict[2]), []).append([*verdict, run["about"]["profile"]])
    lines = [f"% Written by benchmarks/conformance_record.py from docs/results/{out.name}.", ""]
    lines += [f"{line}." for line in sorted({_about(run["about"]) for run in record["runs"]})]
    lines += [
        "",
        "| implementation | dtype | profile | pass | deviation | not supported | fail | largest error / bound |",
    ]
    lines += ["| --- " * 8 + "|"]
    failures = []
    for (name, dtype), verdicts in found.items():
        counts = Counter(verdict[3] for verdict in verdicts)
        bad = [verdict for verdict in verdicts if verdict[3] not in OUTCOMES]
        margins = [(v[4], v[1]) for v in verdicts if v[4] is not None and v[3] == "pass"]
        largest = f"{max(margins)[0]:.2g} ({max(margins)[1]})" if margins else ""
        profiles = "/".join(sorted({verdict[6] for verdict in verdicts}))
        cells = [name, dtype, profiles, *(counts[kind] for kind in OUTCOMES), len(bad), largest]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
        for outcome, why in dict.fromkeys((v[3], v[5]) for v in bad):
            labels = [v[1] for v in bad if (v[3], v[5]) == (outcome, why)]
            failures.append(f"- {name}, {dtype}, {', '.join(labels)}: {outcome}: {why}")
    lines += ["", *(failures or ["Nobody failed."])]
    print("\n".join(lines))
    if write:
        write_whole(ROOT / f"docs/generated/{out.stem}.md", "\n".join(lines) + "\n")
    return 0


def device() -> str:
    """The accelerator and its driver, as nvidia-smi names them."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "none"


def _about(about: Record) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    machine = about["machine"]
    accelerator = "" if machine["device"] == "none" else f"{machine['device']}, "
    where = f"{accelerator}{machine['cpus']} processors ({machine['processor']}), Python {machine['python']}"
    commit = f", commit {about['commit']}" if about.get("commit") else ""
    return f"{about['date'][:10]}, {where}, {versions}, seed {about['seed']}{commit}"


def _why(verdict: Record) -> str:
    return verdict["reason"].splitlines()[0][:200] if verdict["outcome"] not in ("pass", "not supported") else ""


def _short(margin: float | str | None) -> float | None:  # "inf", "nan" are strings in JSON
    return None if margin is None else float(f"{float(margin):.3g}")


if __name__ == "__main__":
    sys.exit(main())
