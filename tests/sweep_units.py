"""Units that the tests of sweeps run in other processes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def square(number: float, log: str = "") -> dict[str, float]:
    """A unit; ``log`` is a file that gets a line for each run."""
    if log:
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"{number}\n")
    print("a unit may print", flush=True)
    return {"square": number * number / 3}


def slow_square(number: float, log: str, seconds: float = 0.3) -> dict[str, float]:
    """A unit that takes a while."""
    time.sleep(seconds)
    return square(number, log)


def dies_at_first(number: float, folder: str, times: int = 1) -> float:
    """Kills its process so many times, and then answers."""
    seen = Path(folder) / f"{number}"
    deaths = len(seen.read_text(encoding="utf-8")) if seen.exists() else 0
    if deaths < times:
        seen.write_text("x" * (deaths + 1), encoding="utf-8")
        os.kill(os.getpid(), signal.SIGKILL)
    return number + 0.1
