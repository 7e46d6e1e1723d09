"""Sessions on the command line that the docs show: each is run as it stands there, in an empty folder.

    python -m tests.transcripts docs/conformance.md     # writes what the commands print into the page

A ``code-block`` with a caption is a file of that name; in a ``console`` block, lines that start with ``$`` are
commands and the rest is what they print. Digits and seconds may differ from machine to machine: numbers with a point
or an exponent are not compared, everything else is, exactly.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

BLOCK = re.compile(r"^```(\{code-block\} \w+\n:caption: (?P<file>\S+)\n\n|console\n)(?P<body>.*?)^```$", re.M | re.S)
NUMBER = re.compile(r"[-+]?\d+\.\d+(e[-+]?\d+)?|[-+]?\d+e[-+]?\d+")


def played(text: str, folder: Path) -> str:
    """The page with every console block as it comes out in a folder now."""

    def play(match: re.Match[str]) -> str:
        if match["file"]:
            (folder / match["file"]).write_text(match["body"], encoding="utf-8")
            return match[0]
        commands = [line[2:] for line in match["body"].splitlines() if line.startswith("$ ")]
        shown = "\n".join(f"$ {command}\n{_output_of(command, folder)}".rstrip() for command in commands)
        return f"```console\n{shown}\n```"

    return BLOCK.sub(play, text)


def comparable(text: str) -> str:
    """The text without the digits that a machine is free in."""
    return NUMBER.sub("#", text)


def _output_of(command: str, folder: Path) -> str:
    bin_folder = str(Path(sys.executable).parent)
    settings = {"PATH": bin_folder + os.pathsep + os.environ["PATH"], "COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb"}
    run = subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # progress, which comes when it comes
        text=True,
        timeout=600,
        check=False,
    )
    lines = [line.rstrip() for line in run.stdout.splitlines()]
    return "\n".join(lines).strip("\n").replace(str(folder), ".")


def main() -> None:
    for page in map(Path, sys.argv[1:]):
        with tempfile.TemporaryDirectory() as folder:
            new = played(page.read_text(encoding="utf-8"), Path(folder))
        page.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
