"""Write docs/generated/peers.md: what each adapter calls, claims and declares, and what its examples saw.

python -m tests.peer_report             all that are installed, each in a process of its own
python -m tests.peer_report --one NAME  the section of one, on standard output
"""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

from ia_core.conformance import adapters
from ia_core.conformance.adapters import BUILTIN, KNOWN_BAD, find, installed, version

from . import peer_examples_more, peer_examples_optional
from .peer_examples import SHOWN

PAGE = Path(__file__).resolve().parents[1] / "docs/generated/peers.md"
assert peer_examples_more and peer_examples_optional  # imported for the examples that they register


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--one"]:
        print(section(arguments[1]))
        return 0
    names = [name for name in BUILTIN if name in installed(every_backend=True) or name in KNOWN_BAD]
    missing = sorted(set(BUILTIN) - set(names))
    if missing:
        print(f"not installed: {', '.join(missing)}; the page would lose them", file=sys.stderr)
        return 1
    PAGE.write_text("\n".join(_in_its_process(name) for name in names), encoding="utf-8")
    return 0


def section(name: str) -> str:
    """The section of an adapter in Markdown; its examples run."""
    one = find(name)
    lines = [f"## {name}", "", _docstring(name), "", f"- Version: {version(name)}."]
    lines += [f"- Dtypes: {', '.join(one.dtypes)}."]
    if one.arithmetic:
        lines += [f"- Arithmetic: {', '.join(f'{dtype}: {kind}' for dtype, kind in one.arithmetic.items())}."]
    lines += [f"- Claims: {', '.join(sorted(one.claims))}.", ""]
    labels = sorted(label for shown, label in SHOWN if shown == name)
    lines += ["| clause | what it does otherwise | seen by the example |", "| --- | --- | --- |"]
    for label in labels:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            seen = SHOWN[name, label](name, label)
        reason = one.deviations.get(label, "convicted: this is not declared")
        lines.append(f"| {label} | {reason} | {seen} (`{SHOWN[name, label].__name__}`) |")
    return "\n".join(lines) + "\n"


def _docstring(name: str) -> str:
    factory: Any = adapters._FACTORIES[name]
    return inspect.cleandoc(getattr(factory, "func", factory).__doc__ or "")


def _in_its_process(name: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "KERAS_BACKEND"}
    if name.startswith("keras-"):
        environment["KERAS_BACKEND"] = name.removeprefix("keras-")
    command = [sys.executable, "-m", "tests.peer_report", "--one", name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
