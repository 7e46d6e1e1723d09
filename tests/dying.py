"""Implementations that are right until they are given a mask, and then do something terrible: one for each way.

IA-F-02 and IA-F-07 give no mask and IA-F-06 does, so a run over the three must pass, fail and pass again.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ia_core import indirect_attention

WAYS: dict[str, Callable[..., Any]] = {}
_ACTS: list[Callable[[], Any]] = []
# They take all the time they get.
SLOW = {"loops", "hangs_with_the_interpreter_lock", "loops_and_ignores_signals", "stops_itself", "announces_a_message"}


def way(act: Callable[[], Any]) -> Callable[..., Any]:
    """An attention function that does something first, but only where there is a mask."""

    def attention(query: Any, key: Any, value: Any, *, bias: Any = None, mask: Any = None, scale: Any = None) -> Any:
        if mask is not None:
            act()
        return indirect_attention(query, key, value, bias=bias, mask=mask, scale=scale)

    attention.__name__ = attention.__qualname__ = act.__name__
    attention.__module__ = __name__
    WAYS[act.__name__] = attention
    _ACTS.append(act)
    return attention


@way
def reads_address_zero() -> None:
    ctypes.string_at(0)


@way
def segfaults() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


@way
def aborts() -> None:
    os.abort()


@way
def overflows_the_stack() -> None:
    # A small stack: not every machine lets one grow without end.
    sys.setrecursionlimit(10**9)
    resource.setrlimit(resource.RLIMIT_STACK, (2**20, 2**20))
    libc = ctypes.CDLL(None)
    compare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)

    def deeper(*_: Any) -> int:
        pair = (ctypes.c_int * 2)(2, 1)
        libc.qsort(pair, 2, 4, compare(deeper))
        return 0

    deeper()


@way
def loops() -> None:
    while True:
        pass


@way
def hangs_with_the_interpreter_lock() -> None:
    ctypes.PyDLL(None).pause()


@way
def loops_and_ignores_signals() -> None:
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_IGN)
    while True:
        pass


@way
def stops_itself() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


@way
def eats_memory() -> None:
    kept = []
    while True:
        kept.append(np.ones(2**21))
        time.sleep(0.005)


@way
def eats_memory_in_a_child() -> None:
    code = "import time\nkept = []\nwhile True:\n kept.append(b'x' * 2**24); time.sleep(0.005)"
    subprocess.run([sys.executable, "-c", code], check=True)


@way
def exits() -> None:
    sys.exit(3)


@way
def exits_at_once() -> None:
    os._exit(0)


@way
def raises_base_exception() -> None:
    raise BaseException("not an Exception")


@way
def raises_keyboard_interrupt() -> None:
    raise KeyboardInterrupt


@way
def raises_generator_exit() -> None:
    raise GeneratorExit


@way
def interrupts_the_main_thread() -> None:
    signal.raise_signal(signal.SIGINT)


@way
def kills_its_group() -> None:
    os.killpg(0, signal.SIGKILL)


@way
def closes_files() -> None:
    os.closerange(0, 4096)


@way
def puts_another_file_in_their_place() -> None:
    handle = os.open(os.devnull, os.O_RDWR)
    for number in range(64):
        if number != handle:
            os.dup2(handle, number)


@way
def announces_a_message() -> None:
    """Four bytes into every file: to the run they are the length of an answer, 16 MiB, that never comes."""
    for number in range(3, 64):
        with contextlib.suppress(OSError):
            os.write(number, b"\0\xff\xff\xff")


@way
def prints_without_end() -> None:
    while True:
        os.write(1, b"x" * 2**20)


# The rest misbehaves and gives the right answer all the same: other clauses are about that; the run only has to go on.


@way
def prints() -> None:
    print("printed by Python")
    print("printed as an error", file=sys.stderr)
    os.write(1, b"printed to 1\n")
    os.write(2, b"printed to 2\n")


@way
def takes_stdout_away() -> None:
    sys.stdout = sys.stderr = None  # type: ignore[assignment]


@way
def forks() -> None:
    os.fork()


@way
def forks_behind_the_interpreter() -> None:
    ctypes.CDLL(None).fork()


@way
def leaves_a_child_that_sleeps() -> None:
    if os.fork() == 0:
        os.setsid()
        time.sleep(1000)


@way
def leaves_a_child_and_aborts() -> None:
    """Before anybody can have seen the child, which is in a session of its own."""
    if os.fork() == 0:
        os.setsid()
        os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(1000)"])
    os.abort()


@way
def leaves_a_program_running() -> None:
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"], start_new_session=True)


@way
def leaves_a_thread() -> None:
    threading.Thread(target=time.sleep, args=(1000,)).start()


@way
def seeds_everything() -> None:
    random.seed(1)
    np.random.seed(1)


@way
def removes_the_environment() -> None:
    os.environ.clear()
    os.chdir("/")
    sys.path.clear()
    sys.modules.pop("pickle", None)


# Read at once: some ways remove the environment.
TURNS = os.environ.get("DYING_TURNS", "")


def dies_in_turn(query: Any, key: Any, value: Any, **keywords: Any) -> Any:
    """Every call goes the next way, also in the next process: a file has the names of those that were gone.

    The ways that take all their time are gone once, in the first round.
    """
    turns = Path(TURNS)
    gone = turns.read_text().split() if turns.exists() else []
    acts = [act for act in _ACTS if act.__name__ not in SLOW or act.__name__ not in gone]
    act = _ACTS[len(gone)] if len(gone) < len(_ACTS) else acts[len(gone) % len(acts)]
    with turns.open("a") as file:
        file.write(f"{act.__name__}\n")
    act()
    return indirect_attention(query, key, value, **keywords)


globals().update(WAYS)
