"""The run on a GPU: what takes too long is interrupted, keeps what it has, and is named."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

SLOW = """
import sys, time
try:
    time.sleep(60)
except KeyboardInterrupt:
    open(sys.argv[1], "w").write("kept")
    sys.exit(3)
"""


def test_a_command_past_its_limit_is_interrupted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    on_gpu = importlib.import_module("benchmarks.on_gpu")
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    good = tmp_path / "good.py"
    good.write_text("print('well')")
    stage = [
        on_gpu.Command("slow", f"{script} {{json}}", 2.0),
        on_gpu.Command("good", str(good), 60.0),
    ]
    assert on_gpu.together(stage, tmp_path) == ["slow"]
    assert (tmp_path / "slow.json").read_text() == "kept"
    assert "slow: status 3" in capsys.readouterr().out
    assert (tmp_path / "good.log").read_text() == "well\n"
