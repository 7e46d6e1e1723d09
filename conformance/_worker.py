"""Judge an implementation in a process of its own, and survive whatever it does there.

The process may crash, hang, print, fork, close files or eat memory: each is a verdict for the clause that was being
judged, and a fresh process takes over for the next one.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from multiprocessing import connection as pipes
from typing import Any

from . import _worker_child as child
from ._case import Case
from ._clause import CLAUSES
from ._implementation import Implementation
from ._inbox import Inbox
from ._judging import Answer, Question, answer, broken, death_verdict
from ._process import Limits, descendants, exit_status, how_it_ended, kill_tree, memory_of, shorten, size_text, started
from ._recipe import Recipe, stand_in
from ._verdict import Verdict, judge

__all__ = ["Worker", "can_isolate"]

# After so many deaths in a row before it was ready, a process is not started again.
_STARTS = 3
# After so many clauses in a row that took all their time, the next ones get a tenth of it.
_PATIENCE = 3
_TICK = 0.05
_TAIL = 2**16
# Threads that have nothing to do sleep, unless the user wants otherwise: cases are small, and a thread of OpenMP that
# spins beside them takes the processor from whoever else runs. How many threads there are is not touched.
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE"}
_CLOSED = ", as it does when the function closes files that are not its own"
_BOOT = (
    "import sys, multiprocessing.connection as c; p = c.Connection(int(sys.argv[1])); sys.path[:] = p.recv();"
    "from ia_core.conformance._worker_child import main; main(p, int(sys.argv[2]))"
)


def can_isolate() -> bool:
    """Whether this system has what a worker needs: sockets that a new process inherits, process groups."""
    return os.name == "posix"


class _Died(Exception):
    """The process is gone, or had to be ended; why."""

    def __init__(self, reason: str, *, slow: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.slow = reason, slow


class Worker:
    """One implementation in a process of its own, started when it is needed and again when it has died.

    Parameters
    ----------
    recipe : Recipe
        How the process builds the implementation.
    limits : Limits, optional
    isolate : bool
        False judges in this process. So is, with a note, what cannot be built in another one.

    Examples
    --------
    >>> with Worker(Recipe("ia_core:indirect_attention")) as worker:
    ...     worker.judge("IA-F-01", "float64").outcome
    'pass'
    """

    def __init__(self, recipe: Recipe, limits: Limits | None = None, *, isolate: bool = True) -> None:
        self.recipe, self.limits = recipe, limits or Limits()
        self.notes: list[str] = []
        self.drawn: Case | None = None
        self._here: Implementation | None = None
        self._known: Implementation | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._hopeless = ""
        self._failed_starts = self._slow = 0
        self._others: dict[int, int] = {}
        self._case, self._words, self._mark = b"", "", ""
        if isolate and can_isolate():
            self._known = recipe.known()
        else:
            self._here = recipe.build()
            self.notes += recipe.notes(self._here)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def implementation(self) -> Implementation:
        """What is judged; unless it is judged here, a stand-in that says the same of itself and cannot be called.

        Raises
        ------
        TypeError, ValueError
            If the recipe makes no sense (IA-X-21).
        """
        if self._here is not None:
            return self._here
        if self._known is None:
            with contextlib.suppress(_Died):
                self._start()
        if self._known is None and self._here is None:
            self._known = self._unknown()
        return self._here or self._known

    def judge(self, label: str, dtype: str, profile: str = "quick", seed: int = 0) -> Verdict:
        """The verdict of a clause in a dtype. It always comes."""
        implementation, clause = self.implementation, CLAUSES[label]
        self.drawn = None
        if clause.unsupported(implementation):
            return judge(implementation, clause, profile=profile, seed=seed, dtype=dtype)
        return self._ask(Question(label, dtype, profile, seed, shrink=self._limit() / 3))

    def repeat(self, label: str, case: Case, dtype: str, profile: str = "quick", seed: int = 0) -> Verdict:
        """The verdict of a clause on one case alone."""
        self.drawn = None
        return self._ask(Question(label, dtype, profile, seed, case))

    def close(self) -> None:
        """End the process and everything that it started."""
        process, self._process = self._process, None
        if process is None:
            return
        kill_tree(process, [pid for pid, since in self._others.items() if started(pid) == since], self._mark)
        self._others.clear()
        self._line.close()
        os.close(self._output)

    # What follows speaks with the process.

    def _limit(self) -> float:
        return self.limits.seconds / (10 if self._slow >= _PATIENCE else 1)

    def _ask(self, question: Question) -> Verdict:
        began = time.monotonic()
        self._case = b""
        try:
            if self._here is not None:
                found = _here(self._here, question)
            else:
                found = self._travel(question, self._limit())
                self._slow = 0
        except _Died as died:
            self._slow = self._slow + 1 if died.slow else 0
            found = Answer(None, broken=died.reason)
        except BaseException:  # a person's: no answer may be taken for that to a later question
            self.close()
            raise
        else:
            self._words = self._printed()
        if found.verdict is None:
            found = found._replace(drawn=found.drawn or self._last_case())
        self.drawn = found.drawn
        if found.verdict is None:
            seconds = time.monotonic() - began
            return death_verdict(self.implementation, question, found, printed=self._words, seconds=seconds)
        if found.verdict.bad and self._words:
            found.verdict.details["printed"] = self._words
        return found.verdict

    def _travel(self, question: Question, limit: float) -> Answer:
        if self._process is None:
            self._start()
        if self._here is not None:
            return _here(self._here, question)
        with contextlib.suppress(OSError):
            os.ftruncate(self._output, 0)
        self._send(question)
        kind, content = self._receive(limit, "its answer")
        if kind != child.ANSWER or not isinstance(content, Answer):
            raise self._died("the process answered with something else: did the function write to files not its own?")
        return content

    def _start(self) -> None:
        """Start the process and build the implementation in it."""
        if self._hopeless:
            raise _Died(self._hopeless)
        try:
            message = self.recipe.message()
        except Exception as error:
            return self._stay_here(f"{type(error).__name__}: {error}")
        try:
            self._spawn(message)
            kind, content = self._receive(self.limits.start, "its start")
        except _Died as died:
            self._failed_starts += 1
            if died.slow or self._failed_starts >= _STARTS:
                self._hopeless = f"its worker does not start: {died.reason}"
            raise _Died(f"its worker does not start: {died.reason}") from died
        if kind == child.READY:
            self._failed_starts = 0
            self._known, self.notes = self._known or content[0], content[1]
            return None
        self._hopeless, self._words = f"its worker does not start: {content}", self._printed()
        self.close()
        if kind == child.UNSENDABLE:
            return self._stay_here(content)
        if kind == child.ERROR and self._known is None:
            raise content[0](content[1])
        raise _Died(self._hopeless)

    def _stay_here(self, why: str) -> None:
        self._here = self.recipe.build()
        self.notes.append(f"{self.recipe.name} is judged in this process, which it may end: it cannot be sent ({why})")

    def _spawn(self, message: bytes) -> None:
        self._line, there = pipes.Pipe()
        self._inbox = Inbox()
        handle, path = tempfile.mkstemp(prefix="ia-core-")
        os.close(handle)
        self._output = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        os.unlink(path)
        # A process dies with the thread that started it: only the main one is sure to live as long as the run.
        self._mark = f"IA_CORE_WORKER={uuid.uuid4().hex}"
        parent = os.getpid() if threading.current_thread() is threading.main_thread() else 0
        self._process = subprocess.Popen(
            [sys.executable, "-u", "-P", "-c", _BOOT, str(there.fileno()), str(parent)],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            pass_fds=[there.fileno()],
            env=PASSIVE | os.environ | dict([self._mark.split("=")]),
            start_new_session=True,
        )
        there.close()
        self._send(list(sys.path))
        self._send(message)

    def _send(self, thing: Any) -> None:
        with contextlib.suppress(OSError):  # it has ended meanwhile; the next look says how
            self._line.send(thing)

    def _receive(self, limit: float, what: str) -> tuple[bytes, Any]:
        """The next message but for announced cases, unless the process ends or exceeds a limit first."""
        assert self._process is not None
        now = time.monotonic()
        deadline, next_look = now + limit, now + _TICK
        while True:
            try:
                message = self._inbox.message()
                if message is None and self._line.poll(_TICK):
                    self._inbox.read(self._line.fileno())
                    message = self._inbox.message()
                if message is not None:
                    if message[:1] != child.CASE:
                        return message[:1], pickle.loads(message[1:])
                    self._case = message[1:]
            except (EOFError, OSError):
                raise self._died(self._end()) from None
            except Exception as error:
                raise self._died(f"the process sent {what} in a form that nobody reads: {error}") from None
            now = time.monotonic()
            if now >= next_look:
                next_look = now + _TICK
                self._look(now > deadline, limit, what)

    def _look(self, late: bool, limit: float, what: str) -> None:
        """End a process that exceeds a limit."""
        process = self._process
        assert process is not None
        if exit_status(process) is not None and not self._line.poll(0):
            raise self._died(self._end())
        below = descendants(process.pid)
        self._others |= {pid: started(pid) for pid in below}
        used = memory_of([process.pid, *below], self.limits.memory)
        if used > self.limits.memory:
            text = f"{size_text(used)} of memory, more than the limit of {size_text(self.limits.memory)} (--memory)"
            raise self._died(f"the process was stopped: it used {text}")
        if os.fstat(self._output).st_size > self.limits.output:
            raise self._died(f"the process was stopped: it printed more than {size_text(self.limits.output)}")
        if late:
            with contextlib.suppress(OSError):
                process.send_signal(child.WHERE)  # it writes where it stands
            time.sleep(2 * _TICK)
            shorter = self._slow >= _PATIENCE and what == "its answer"
            which = "a tenth (after others that took all of it) of the limit" if shorter else "the limit"
            text = f"the process was stopped: {what} took more than {limit:g} s, {which} that --timeout sets"
            raise self._died(text, slow=True)

    def _died(self, reason: str, *, slow: bool = False) -> _Died:
        """End what is left of the process, and keep what it said last."""
        self._words = self._printed()
        self.close()
        return _Died(reason, slow=slow)

    def _end(self) -> str:
        """How a process ended whose end of the line is gone."""
        process = self._process
        assert process is not None
        for _ in range(20):
            status = exit_status(process)
            if status is not None:
                return how_it_ended(status) + (_CLOSED if status == child.CUT_OFF else "")
            time.sleep(_TICK)
        return "the process closed its connection to the run, which the function must not do"

    def _printed(self) -> str:
        """The end of what was printed during the last clause."""
        if self._process is None:
            return ""
        with contextlib.suppress(OSError):
            size = os.fstat(self._output).st_size
            return shorten(os.pread(self._output, _TAIL, max(0, size - _TAIL)).decode("utf-8", "replace"))
        return ""

    def _last_case(self) -> Any:
        try:
            return pickle.loads(self._case) if self._case else None
        except Exception:
            return None

    def _unknown(self) -> Implementation:
        """Something to hang verdicts on where the process never told what it holds."""
        if self.recipe.implementation is not None:
            return stand_in(self.recipe.implementation)
        return stand_in(
            Implementation(_never_built, self.recipe.name, target=self.recipe.target, **self.recipe.options.given())
        )


def _here(implementation: Implementation, question: Question) -> Answer:
    try:
        return answer(implementation, question)
    except KeyboardInterrupt:  # the person's, as far as can be told
        raise
    except BaseException as error:
        return broken(error)


def _never_built(*arrays: Any, **keywords: Any) -> Any:
    raise RuntimeError("this implementation was never built")
