"""Results on disk: one JSON file for each variant, draw and seed, written whole or not at all."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ._registry import Unit

__all__ = ["CACHE", "RESULTS", "is_done", "made_by_another", "path_of", "read_all", "write_bytes", "write_json"]

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs/results/experiments"
CACHE = ROOT / "build/experiments"


def path_of(folder: Path, unit: Unit, seed: int) -> Path:
    """Where the result of one seed stands."""
    name = re.sub(r"[^a-z0-9.]+", "-", unit.variant.lower()).strip("-")
    return folder / unit.experiment / name / f"draw{unit.draw}-seed{seed}.json"


def is_done(folder: Path, unit: Unit, framework: str) -> bool:
    """Whether every seed of a unit has a result of the same options and framework."""
    for seed in unit.seeds:
        path = path_of(folder, unit, seed)
        if not path.exists():
            return False
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["options"] != plain(unit.options) or record["framework"] != framework:
            return False
    return True


def made_by_another(folder: Path, unit: Unit, framework: str) -> str | None:
    """The other framework that made a result of a unit, if one did."""
    for seed in unit.seeds:
        path = path_of(folder, unit, seed)
        if path.exists():
            own: str = json.loads(path.read_text(encoding="utf-8"))["framework"]
            if own != framework:
                return own
    return None


def plain(options: Any) -> dict[str, Any]:
    """Options as JSON gives them back."""
    fields: dict[str, Any] = json.loads(json.dumps(options._asdict()))
    return fields


def read_all(folder: Path, experiment: str) -> Iterator[dict[str, Any]]:
    """Every record of an experiment, in the order of the file names."""
    for path in sorted((folder / experiment).glob("*/*.json")):
        yield json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, record: Any) -> None:
    """Compact JSON, one line."""
    write_bytes(path, (json.dumps(record, separators=(",", ":"), ensure_ascii=False) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write beside the file and rename, so that what is there is the old content or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
