"""How far a run is: a bar on a terminal, elsewhere a line now and then. Never on standard output."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ._verdict import Verdict

__all__ = ["progress"]

# Seconds between two lines where there is no terminal, such as in the log of a build.
EVERY = 15.0


@contextlib.contextmanager
def progress(total: int, every: float = EVERY) -> Iterator[Callable[[Verdict], None]]:
    """Gives what is to be told of every verdict.

    Examples
    --------
    >>> with progress(1) as tell:
    ...     tell(Verdict("IA-F-01", "mine", "pass"))
    """
    # A duplicate, because pytest may put something else in the place of standard error.
    with _duplicate(sys.stderr) as stream:
        if stream.isatty():
            with _bar(stream, total) as tell:
                yield tell
        else:
            yield _lines(stream, total, every)


@contextlib.contextmanager
def _bar(stream: TextIO, total: int) -> Iterator[Callable[[Verdict], None]]:
    columns: Any = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=Console(file=stream), transient=True)
    task = bar.add_task("judging", total=total)
    bad = 0

    def tell(verdict: Verdict) -> None:
        nonlocal bad
        bad += verdict.bad
        failed = f", {bad} failed" if bad else ""
        bar.update(task, advance=1, description=f"{verdict.implementation} {verdict.label} {verdict.dtype}{failed}")

    with bar:
        yield tell


def _lines(stream: TextIO, total: int, every: float) -> Callable[[Verdict], None]:
    judged = bad = 0
    last = time.monotonic()

    def tell(verdict: Verdict) -> None:
        nonlocal judged, bad, last
        judged, bad, now = judged + 1, bad + verdict.bad, time.monotonic()
        if now - last >= every and judged < total:
            last = now
            name = f"{verdict.implementation} {verdict.label} {verdict.dtype}"
            print(f"{judged} of {total} judged, {bad} failed, now after {name}", file=stream, flush=True)

    return tell


@contextlib.contextmanager
def _duplicate(stream: TextIO) -> Iterator[TextIO]:
    try:
        handle = os.dup(stream.fileno())
    except (OSError, ValueError):  # a stream in memory
        yield stream
        return
    with os.fdopen(handle, "w", encoding=stream.encoding, errors="replace") as copy:
        yield copy
