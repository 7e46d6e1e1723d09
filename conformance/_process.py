"""A process that is watched: its memory, its descendants, its end. Read from /proc where there is one."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = [
    "Limits",
    "default_memory",
    "descendants",
    "exit_status",
    "how_it_ended",
    "kill_tree",
    "marked",
    "memory_of",
    "shorten",
    "size_text",
    "started",
]

GiB = 2**30
_ROUNDS = 10
# So many looks in a row must find nothing, with so many seconds in between.
_LOOKS, _PAUSE = 3, 0.05
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
# Seconds that one clause may take in one dtype, by profile: many times what the slowest correct implementation needs.
_SECONDS = {"quick": 120.0, "full": 600.0}


@dataclasses.dataclass(frozen=True)
class Limits:
    """How much an implementation may take before it is stopped.

    Attributes
    ----------
    seconds : float
        For one clause in one dtype.
    memory : int
        Bytes of resident memory, of the process and its descendants together.
    start : float
        Seconds for starting: importing the frameworks and the module under test.
    output : int
        Bytes printed during one clause.

    Examples
    --------
    >>> Limits.of("full").seconds
    600.0
    """

    seconds: float = _SECONDS["quick"]
    memory: int = 8 * GiB
    start: float = 300.0
    output: int = 2**26

    @classmethod
    def of(cls, profile: str, seconds: float | None = None, memory_gib: float | None = None) -> Limits:
        """The limits of a profile, or those given.

        Raises
        ------
        ValueError
            If one is not above 0 (IA-X-21).
        """
        for name, given in (("--timeout", seconds), ("--memory", memory_gib)):
            if given is not None and not 0 < given < float("inf"):
                raise ValueError(f"`{name}` must be above 0; got {given:g} [IA-X-21]")
        return cls(
            seconds=_SECONDS[profile] if seconds is None else seconds,
            start=max(cls.start, seconds or 0.0),
            memory=default_memory() if memory_gib is None else int(memory_gib * GiB),
        )

    def text(self) -> str:
        """For a report."""
        return f"{self.seconds:g} s a clause and dtype, {size_text(self.memory)} of memory"


def default_memory() -> int:
    """8 GiB, or three quarters of the machine's (or the container's) memory if that is less."""
    sizes = [8 * GiB]
    with contextlib.suppress(OSError, ValueError):
        sizes.append(3 * os.sysconf("SC_PHYS_PAGES") * _PAGE // 4)
    with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
        sizes.append(3 * int(Path("/sys/fs/cgroup/memory.max").read_text()) // 4)
    return min(sizes)


def size_text(size: int) -> str:
    """A number of bytes for people.

    Examples
    --------
    >>> size_text(2**33), size_text(3 * 2**19)
    ('8 GiB', '1.5 MiB')
    """
    return f"{size / GiB:.3g} GiB" if size >= GiB else f"{size / 2**20:.3g} MiB"


def descendants(pid: int) -> list[int]:
    """The processes below one, children first; empty where there is no /proc."""
    found, todo = [], [pid]
    while todo:
        for task in _listed(f"/proc/{todo.pop()}/task"):
            with contextlib.suppress(OSError, ValueError):
                children = [int(word) for word in Path(task, "children").read_text().split()]
                found += children
                todo += children
    return found


def started(pid: int) -> int:
    """When a process started, in the system's ticks, so that a number that came back is told from it; 0 without one."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0


def memory_of(pids: Iterable[int], limit: int) -> int:
    """Resident bytes of processes together; pages that they share count once where that decides about the limit."""
    pids = list(pids)
    size = sum(_resident(pid) for pid in pids)
    return sum(_proportional(pid) for pid in pids) if size > limit and len(pids) > 1 else size


def exit_status(process: subprocess.Popen[bytes]) -> int | None:
    """As ``poll``, but the process is not reaped: its number, and its group's, stay its own until all are killed."""
    if process.returncode is not None:
        return process.returncode
    try:
        found = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # somebody else has reaped it
        return process.poll()
    if found is None:
        return None
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status


def marked(mark: str) -> list[int]:
    """Processes in whose first environment a text stands: also those that nothing else connects with their parent."""
    if not mark:
        return []
    found = []
    for folder in _listed("/proc"):
        with contextlib.suppress(OSError, ValueError):  # another user's, or no process
            pid = int(os.path.basename(folder))
            if mark.encode() in Path(folder, "environ").read_bytes():
                found.append(pid)
    return found


def kill_tree(process: subprocess.Popen[bytes], others: Sequence[int] = (), mark: str = "") -> None:
    """End a process that leads a group, the group, and all descendants; a signal that nobody can ignore.

    Those that have left the group, and whose parent is gone, are known by a mark in their environment.
    """
    for pid in {*others, *descendants(process.pid)}:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    if process.returncode is None:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
    unseen = 0
    for _ in range(_ROUNDS):  # one may just have started another
        left = [pid for pid in marked(mark) if pid != process.pid]
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        # What is just becoming another program has no environment for a moment: one look is not enough.
        unseen = 0 if left else unseen + 1
        if unseen == _LOOKS or not mark:
            break
        if not left:
            time.sleep(_PAUSE)
    with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in a system call: nothing more can be done
        process.wait(timeout=10)


def how_it_ended(status: int) -> str:
    """An exit status in words.

    Examples
    --------
    >>> how_it_ended(-11)
    'the process was killed by SIGSEGV'
    >>> how_it_ended(3)
    'the process ended itself with exit status 3'
    """
    if status >= 0:
        return f"the process ended itself with exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    system = ", not sent by this suite: perhaps the machine ran out of memory" if -status == signal.SIGKILL else ""
    return f"the process was killed by {name}{system}"


def shorten(printed: str, length: int = 1500) -> str:
    """The end of what a process printed; of a crash, what Python says of the frames nearest to it."""
    lines = [line for line in printed.strip().splitlines() if not line.startswith("Extension modules:")]
    crash = [i for i, line in enumerate(lines) if line.startswith(("Current thread 0x", "Stack (most recent"))]
    lines = lines[: crash[-1] + 8] if crash else lines
    text = "\n".join(lines).strip()
    return f"... {text[-length:]}" if len(text) > length else text


def _listed(folder: str) -> list[str]:
    try:
        return [os.path.join(folder, name) for name in os.listdir(folder)]
    except OSError:
        return []


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError, ValueError):  # it has ended, or there is no /proc
        return 0


def _proportional(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    except (OSError, StopIteration, ValueError):
        return _resident(pid)
