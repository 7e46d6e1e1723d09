"""The other side of ``_worker``: a process that holds one implementation and answers the run.

Nothing that the implementation does to this process may reach the run: its output goes to a file, answers travel
through a socket of their own, and a copy of the process (a fork) never answers.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from ._judging import answer, broken
from ._recipe import stand_in

__all__ = ["ANSWER", "CASE", "CUT_OFF", "DEAD", "ERROR", "READY", "UNSENDABLE", "WHERE", "main"]

# The first byte of a message says what follows, pickled.
READY, ERROR, UNSENDABLE, DEAD, CASE, ANSWER = b"R", b"E", b"U", b"D", b"C", b"A"

# Exit status of a process whose connection was taken away.
CUT_OFF = 70

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
# Signal on which the process says where it stands, before it is killed for taking too long.
WHERE = getattr(signal, "SIGUSR1", signal.SIGTERM)


class Line:
    """The connection to the run, usable by the process that opened it and by no copy of that process."""

    def __init__(self, connection: Connection) -> None:
        self.connection, self.owner = connection, os.getpid()
        self.socket = self._identity()
        os.register_at_fork(after_in_child=connection.close)

    def send(self, kind: bytes, content: bytes) -> None:
        """Send, unless this is a copy of the process, or the file behind the connection is not the socket any more."""
        if os.getpid() != self.owner:
            os._exit(0)
        if self._identity() != self.socket or self.socket is None:
            os._exit(CUT_OFF)  # the implementation closed files that are not its own; the run sees the process end
        try:
            self.connection.send_bytes(kind + content)
        except OSError:  # the run is over
            os._exit(0)

    def finish(self, kind: bytes, content: Any) -> NoReturn:
        """Send the last message. Whatever threads there are, the process ends."""
        self.send(kind, pickle.dumps(content))
        os._exit(0)

    def receive(self) -> Any:
        """What the run says next."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            os._exit(0)

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = os.fstat(self.connection.fileno())
        except OSError:
            return None
        return found.st_dev, found.st_ino


def main(connection: Connection, parent: int) -> NoReturn:
    """Build the implementation that arrives first, then answer calls until the run hangs up."""
    _prepare(parent)
    line = Line(connection)
    try:
        recipe = pickle.loads(line.receive())
    except Exception as error:  # a function whose name leads nowhere in a fresh process
        line.finish(UNSENDABLE, f"{type(error).__name__}: {error}")
    try:
        implementation = recipe.build()
        ready = pickle.dumps((stand_in(implementation), recipe.notes(implementation)))
    except (TypeError, ValueError) as error:
        line.finish(ERROR, (type(error), str(error)))
    except BaseException as error:  # a module that calls sys.exit, a framework that does not import
        traceback.print_exc()
        line.finish(DEAD, broken(error).broken)
    line.send(READY, ready)
    while True:
        question = line.receive()
        line.send(ANSWER, _answer(partial(answer, implementation, question, _sender(line))))


def _sender(line: Line) -> Callable[[Any], None]:
    """Tells the run which case comes next, so that it is known should the process die of it."""

    def send(case: Any) -> None:
        try:
            content = pickle.dumps(case)
        except Exception:  # a case that does not travel is not worth the verdict
            return
        line.send(CASE, content)

    return send


def _answer(work: Callable[[], Any]) -> bytes:
    try:
        found = work()
    except BaseException as error:  # whatever the implementation threw through the check
        with contextlib.suppress(BaseException):
            traceback.print_exc()
        found = broken(error)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):  # it may have closed or replaced them
            stream.flush()
    try:
        return pickle.dumps(found)
    except Exception as error:  # what the implementation gave is part of the verdict and does not travel
        return pickle.dumps(broken(error))


def _prepare(parent: int) -> None:
    """Die with the run, leave no core files, say where a crash happened, and be the first whom a full machine kills."""
    with contextlib.suppress(Exception):
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)  # what it leaves behind stays in sight
        if parent:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent and os.getppid() != parent:
        os._exit(0)
    with contextlib.suppress(Exception):
        import resource  # which not every system has, though every one reads this file

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    faulthandler.enable(file=2, all_threads=False)
    faulthandler.register(WHERE, file=2, all_threads=True)
