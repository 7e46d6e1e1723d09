"""Independent units of work in other processes: retried where one dies, kept where a folder is given.

A unit is a function by name and its arguments, all of which JSON can say; so is its result. What a unit gives depends
on nothing else, so neither the number of processes nor the order of finishing shows in the results. Units that are
finished are kept in a folder under a key of their content, and a run that was killed goes on from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import platform
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Submit", "Unit", "UnitError", "code_digest", "run_unit", "sweep"]

# How often a unit is tried again after the process that ran it died.
RETRIES = 2

Submit = Callable[[Sequence["Unit"]], Generator[tuple["Unit", Any], None, None]]


class Unit(NamedTuple):
    """One piece of work.

    Attributes
    ----------
    function : str
        ``module:name``; called with the arguments as keywords, gives what JSON can say.
    arguments : dict
        What JSON can say.
    content : str
        Whatever else the result depends on, such as the code's own digest.

    Examples
    --------
    >>> Unit("builtins:dict", {"a": 1}).key == Unit("builtins:dict", {"a": 1}).key
    True
    """

    function: str
    arguments: dict[str, Any]
    content: str = ""

    @property
    def key(self) -> str:
        """The same for the same content, on every machine."""
        text = json.dumps([self.function, self.arguments, self.content], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


class UnitError(RuntimeError):
    """A unit raised, or the processes that ran it died each time."""


def run_unit(function: str, arguments: dict[str, Any]) -> Any:
    """Call a unit's function in this process."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)(**arguments)


def sweep(
    units: Sequence[Unit],
    *,
    workers: int = 1,
    keep: str | os.PathLike[str] | None = None,
    submit: Submit | None = None,
    tell: Callable[[Unit, Any], None] = lambda unit, result: None,
) -> list[Any]:
    """The results of units, in their order.

    Parameters
    ----------
    units : sequence of Unit
        Two of the same content are one.
    workers : int
        Processes of this machine.
    keep : path, optional
        Folder of finished units; those found there are not run again.
    submit : callable, optional
        Runs units elsewhere in the place of processes of this machine: gives pairs of a unit and its result, in any
        order.
    tell : callable
        Hears of every unit that is finished, in the order of finishing, and its result.

    Returns
    -------
    list

    Raises
    ------
    ValueError
        If there are no workers (IA-X-26).
    UnitError
        If a unit raised, or died with its process three times; what other units gave until then is kept.

    Examples
    --------
    >>> sweep([Unit("builtins:dict", {"a": 1}), Unit("builtins:dict", {"a": 2})], workers=2)
    [{'a': 1}, {'a': 2}]
    """
    if workers < 1:
        raise ValueError(f"`workers` must be at least 1; got {workers} [IA-X-26]")
    folder = None if keep is None else Path(keep)
    results: dict[str, Any] = {}
    waiting = []
    for unit in {unit.key: unit for unit in units}.values():
        found = None if folder is None else _read(folder / f"{unit.key}.json", unit)
        if found is None:
            waiting.append(unit)
        else:
            results[unit.key] = found["result"]
            tell(unit, found["result"])
    finished = (submit or _Pool(min(workers, max(1, len(waiting)))))(waiting)
    with contextlib.closing(finished):
        for unit, result in finished:
            if folder is not None:
                _write(folder / f"{unit.key}.json", {"unit": list(unit), "result": result})
            results[unit.key] = result
            tell(unit, result)
    return [results[unit.key] for unit in units]


def code_digest(*folders: Path, also: Any = None) -> str:
    """Of this package's code, that in other folders, and anything that JSON can say: what results depend on.

    >>> code_digest(also=1) == code_digest(also=2)
    False
    """
    digest = hashlib.sha256(json.dumps([platform.python_version(), also], sort_keys=True).encode())
    for folder in (Path(__file__).parent, *folders):
        for path in sorted([*folder.rglob("*.py"), *folder.glob("native/*")]):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:32]


def _read(path: Path, unit: Unit) -> dict[str, Any] | None:
    """What is kept of a unit; None if nothing is, or not all of it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        whole = found["unit"] == json.loads(json.dumps(list(unit))) and "result" in found
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if whole else None


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)


class _Pool:
    """Processes of this machine, one thread here for each."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._children: dict[int, subprocess.Popen[str]] = {}
        self._stop = threading.Event()

    def __call__(self, units: Sequence[Unit]) -> Generator[tuple[Unit, Any], None, None]:
        left: queue.SimpleQueue[Unit] = queue.SimpleQueue()
        for unit in units:
            left.put(unit)
        done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        with ThreadPoolExecutor(self._workers) as threads:
            running = [threads.submit(self._work, place, left, done) for place in range(self._workers)]
            try:
                for _ in units:
                    unit, result, error = done.get()
                    if error is not None:
                        raise error
                    yield unit, result
            except BaseException:  # interrupted, or nobody wants more
                self._stop.set()
                for child in list(self._children.values()):
                    child.kill()
                raise
            finally:
                for future in as_completed(running):
                    future.exception()

    def _work(self, place: int, left: queue.SimpleQueue[Unit], done: queue.SimpleQueue[Any]) -> None:
        try:
            while not self._stop.is_set():
                try:
                    unit = left.get_nowait()
                except queue.Empty:
                    return
                try:
                    done.put((unit, self._tried(place, unit), None))
                except Exception as error:
                    done.put((unit, None, error))
        finally:
            child = self._children.pop(place, None)
            if child is not None:
                _ended(child)

    def _tried(self, place: int, unit: Unit) -> Any:
        ends = []
        for _ in range(1 + RETRIES):
            child = self._child(place)
            said = _ask(child, unit)
            if said is not None:
                if "error" in said:
                    raise UnitError(f"{unit.function}({unit.arguments}) raised {said['error']}")
                return said["result"]
            ends.append(_ended(child))
            del self._children[place]
            if self._stop.is_set():
                break
        raise UnitError(f"{unit.function}({unit.arguments}) ended its process {len(ends)} times, exit status {ends}")

    def _child(self, place: int) -> subprocess.Popen[str]:
        if place not in self._children:
            # In a session of its own: an interrupt on the terminal is for this process, which then ends its children.
            child = subprocess.Popen(
                [sys.executable, "-c", "from ia_core._sweep import _serve; _serve()"],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                start_new_session=True,
            )
            self._children[place] = child
        return self._children[place]


def _ended(child: subprocess.Popen[str]) -> int:
    """The exit status of a child that is dead, or ends when it is asked nothing more."""
    for stream in (child.stdin, child.stdout):
        assert stream is not None
        with contextlib.suppress(BrokenPipeError):
            stream.close()
    return child.wait()


def _ask(child: subprocess.Popen[str], unit: Unit) -> dict[str, Any] | None:
    """What a child says to a unit; None if it is gone."""
    assert child.stdin is not None and child.stdout is not None
    try:
        child.stdin.write(json.dumps([unit.function, unit.arguments]) + "\n")
        child.stdin.flush()
        line = child.stdout.readline()
    except (BrokenPipeError, ValueError):
        return None
    if not line.endswith("\n"):
        return None
    said: dict[str, Any] = json.loads(line)
    return said


def _serve() -> None:
    """What a child does: units from standard input, until it ends."""
    # What a unit prints goes to standard error: standard output has the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            said = {"result": run_unit(*json.loads(line))}
        except Exception as error:
            said = {"error": f"{type(error).__name__}: {error}"}
        try:
            answers.write(json.dumps(said) + "\n")
            answers.flush()
        except BrokenPipeError:  # the run was killed; a plain exit would write once more
            os._exit(0)
