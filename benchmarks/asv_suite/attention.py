"""What bench_attention.py times, over the history of the project."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from attention_calls import Setting, contenders


class Attention:
    """8 heads of 64, a bias of 64 hidden units on real positions."""

    params = (["torch", "jax", "numpy"], ["plain", "matrix", "ours", "uncompiled"], [512, 2048], [False, True])
    param_names = ("library", "contender", "n", "gradients")
    timeout = 300.0

    def setup(self, library: str, contender: str, n: int, gradients: bool) -> None:
        """Make the arrays, and call once."""
        if library == "numpy" and gradients:
            raise NotImplementedError
        self.call: Any = contenders(library, Setting(n, 8, 64, 64, "real", gradients))[contender]()
        self.call()

    def time_call(self, *_: Any) -> None:
        """Seconds."""
        self.call()

    def peakmem_call(self, *_: Any) -> None:
        """The largest resident set."""
        self.call()
