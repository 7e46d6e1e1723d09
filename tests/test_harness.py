"""The run survives what it judges: a verdict for every clause, whatever an implementation does to its process."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ia_core import indirect_attention
from ia_core.conformance import CLAUSES, FEATURES, Implementation, Verdict, _process, judge
from ia_core.conformance._judging import Question, answer
from ia_core.conformance._process import Limits, default_memory, how_it_ended, kill_tree, marked, shorten
from ia_core.conformance._progress import progress
from ia_core.conformance._recipe import Recipe
from ia_core.conformance._targets import Options
from ia_core.conformance._worker import Worker
from ia_core.conformance.plugin import ConformanceRun

from .dying import SLOW, WAYS

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")

ROOT = Path(__file__).parents[1]
CLAUSES_OF_DYING = ("IA-F-02", "IA-F-06", "IA-F-07")
SUPPORTS = ("bias", "mask", "scale", "grouped")
HUNGRY = {"eats_memory", "eats_memory_in_a_child"}

# What the verdict says; the ways that are not listed give the right answer, and the run goes on.
SAID = {
    "reads_address_zero": "the process was killed by SIGSEGV",
    "segfaults": "the process was killed by SIGSEGV",
    **dict.fromkeys(("aborts", "leaves_a_child_and_aborts"), "the process was killed by SIGABRT"),
    "overflows_the_stack": "the process was killed by SIGSEGV",
    **dict.fromkeys(SLOW, "the process was stopped: its answer took more than 1 s, the limit that --timeout sets"),
    **dict.fromkeys(HUNGRY, "more than the limit of 500 MiB (--memory)"),
    "exits": "it raised SystemExit: 3",
    "exits_at_once": "the process ended itself with exit status 0",
    "raises_base_exception": "it raised BaseException: not an Exception",
    "raises_keyboard_interrupt": "it raised KeyboardInterrupt",
    "raises_generator_exit": "it raised GeneratorExit",
    "interrupts_the_main_thread": "it raised KeyboardInterrupt",
    "kills_its_group": "the process was killed by SIGKILL, not sent by this suite",
    "closes_files": "as it does when the function closes files that are not its own",
    "puts_another_file_in_their_place": "as it does when the function closes files that are not its own",
    "prints_without_end": "the process was stopped: it printed more than 64 MiB",
}


def worker_for(name: str, **keywords: Any) -> Worker:
    limits = Limits(seconds=60.0, memory=500 * 2**20 if name in HUNGRY else 2**33)
    return Worker(Recipe(f"tests.dying:{name}", Options(supports=SUPPORTS), **keywords), limits)


def judge_by(worker: Worker, label: str, dtype: str = "float64") -> Verdict:
    """With little time for what will hang, and enough for the rest on a busy machine."""
    hangs = worker.recipe.target.partition(":")[2] in SLOW and label == "IA-F-06"
    worker.limits = dataclasses.replace(worker.limits, seconds=1.0 if hangs else 60.0)
    return worker.judge(label, dtype)


@pytest.fixture(autouse=True)
def nobody_is_left() -> Iterator[None]:
    """Nothing that a test has started lives longer than the test."""
    before = children()
    yield
    deadline = time.monotonic() + 20  # tests that run beside this one may have such processes of their own
    while (left := children() - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def children() -> set[str]:
    """Processes of this machine whose command line is that of a worker, or of something that dying.py starts."""
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            parent = f"\0{os.getpid()}\0".encode()
            if (b"_worker_child" in words and parent in words) or b"time.sleep(1000)" in words:
                found.add(folder.name)
    return found


@pytest.mark.parametrize("name", WAYS)
def test_every_way_of_dying_is_a_verdict(name: str) -> None:
    with worker_for(name) as worker:
        verdicts = [judge_by(worker, label) for label in CLAUSES_OF_DYING]
    outcomes = [verdict.outcome for verdict in verdicts]
    assert [verdict.label for verdict in verdicts] == list(CLAUSES_OF_DYING)
    assert outcomes == ["pass", "fail" if name in SAID else "pass", "pass"], verdicts
    assert SAID.get(name, "") in verdicts[1].reason
    if name in SAID:
        assert verdicts[1].failing is not None and verdicts[1].failing.mask is not None
        assert "ia-core conform tests.dying:" in verdicts[1].repeat and verdicts[1].dtype == "float64"


@pytest.mark.slow  # each way by itself is above
def test_a_run_over_all_clauses_survives_all_ways_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYING_TURNS", str(tmp_path / "turns"))
    recipe = Recipe("tests.dying:dies_in_turn", Options(supports=tuple(FEATURES)))
    run = ConformanceRun([recipe], limits=Limits(seconds=4.0, memory=2**30))
    try:
        verdicts = [run.judge(*item) for item in run.items]
    finally:
        run.close()
    assert [verdict.label for verdict in verdicts] == list(CLAUSES)
    assert {verdict.outcome for verdict in verdicts} <= {"fail", "pass", "not supported"}
    gone = (tmp_path / "turns").read_text().split()
    assert set(gone) == set(WAYS) and len(gone) > 3 * len(WAYS)
    reasons = [verdict.reason for verdict in verdicts if verdict.outcome == "fail"]
    deaths = {text.replace("1 s,", "4 s,").replace("500 MiB", "1 GiB") for text in SAID.values()}
    assert all(any(text in reason for reason in reasons) for text in deaths), deaths
    # The others are of ways that give the right answer: a thread that is left is a reason too.
    assert sum(any(text in reason for text in deaths) for reason in reasons) > 0.6 * len(reasons) > 0.3 * len(CLAUSES)


def test_what_left_its_group_and_its_parent_is_found_by_its_mark() -> None:
    mark = f"IA_CORE_WORKER={uuid.uuid4().hex}"
    code = "import os, time\nif os.fork() == 0:\n os.setsid(); print(os.getpid(), flush=True); time.sleep(1000)"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        env=os.environ | dict([mark.split("=")]),
        start_new_session=True,
    )
    assert process.stdout is not None
    with process.stdout as said:
        child = int(said.readline())
    process.wait()
    kill_tree(process)  # the child's parent is gone, and so is its group
    assert marked(mark) == [child]
    kill_tree(process, mark=mark)
    deadline = time.monotonic() + 10
    while marked(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not marked(mark)


def test_a_process_without_an_environment_for_a_moment_is_looked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """So it is with one that is just becoming another program."""
    mark = f"IA_CORE_WORKER={uuid.uuid4().hex}"
    command = [sys.executable, "-c", "import time; time.sleep(100)"]
    other = subprocess.Popen(command, env=os.environ | dict([mark.split("=")]), start_new_session=True)
    process = subprocess.Popen([sys.executable, "-c", ""], start_new_session=True)
    seen_first: list[list[int]] = [[]]
    monkeypatch.setattr(_process, "marked", lambda text: seen_first.pop() if seen_first else marked(text))
    kill_tree(process, mark=mark)
    assert other.wait(timeout=10) == -9


def test_every_way_of_dying_is_listed() -> None:
    assert set(SAID) <= set(WAYS) and len(WAYS) >= 25


def test_a_crash_says_where_it_happened() -> None:
    with worker_for("reads_address_zero") as worker:
        assert "dying.py" in worker.judge("IA-F-06", "float64").details["printed"]
    with worker_for("loops") as worker:
        assert "in loops" in judge_by(worker, "IA-F-06").details["printed"]


def test_a_declared_death_is_a_deviation_that_shows() -> None:
    with worker_for("segfaults", deviations={"IA-F-06[float64]": "known to crash"}) as worker:
        verdict = worker.judge("IA-F-06", "float64")
        assert (verdict.outcome, verdict.reason) == ("deviation", "known to crash")
        assert verdict.seen == "the process was killed by SIGSEGV"
        assert worker.judge("IA-F-06", "float32").outcome == "fail"


def test_output_goes_to_the_verdict_and_nowhere_else(capfd: pytest.CaptureFixture[str]) -> None:
    recipe = Recipe(f"{__name__}:prints_and_is_wrong", Options(supports=SUPPORTS))
    with Worker(recipe) as worker:
        verdict = worker.judge("IA-F-02", "float64")
    assert verdict.outcome == "fail" and "to the file descriptor" in verdict.details["printed"]
    assert capfd.readouterr() == ("", "")


def prints_and_is_wrong(query: Any, key: Any, value: Any, **keywords: Any) -> Any:
    print("by Python")
    os.write(1, b"to the file descriptor\n")
    return 0 * query


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "the process was killed by SIGSEGV"),
        ("import sys\nsys.exit(3)", "it raised SystemExit: 3"),
        ("import os\nos._exit(0)", "the process ended itself with exit status 0"),
        ("while True: pass", "its start took more than 3 s"),
    ],
)
def test_a_module_that_dies_at_import(source: str, text: str, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "dead.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    run = ConformanceRun([Recipe("dead:f")], limits=Limits(start=3.0))
    began = time.monotonic()
    verdicts = [run.judge(*item) for item in run.items]
    assert len(verdicts) == len(CLAUSES) and time.monotonic() - began < 20
    assert {v.outcome for v in verdicts} == {"fail", "not supported"}
    assert all(v.reason.startswith("its worker does not start: ") and text in v.reason for v in verdicts if v.bad)


def test_targets_that_make_no_sense_are_refused_by_their_worker() -> None:
    with pytest.raises(ValueError, match=r"`nowhere:f` does not import: ModuleNotFoundError.* \[IA-X-21\]"):
        _ = Worker(Recipe("nowhere:f")).implementation


def test_what_cannot_be_sent_is_judged_here_and_said_so() -> None:
    run = ConformanceRun(
        [Implementation(lambda q, k, v, **kw: indirect_attention(q, k, v, **kw), "nameless")], [CLAUSES["IA-F-01"]]
    )
    assert [run.judge(*item).outcome for item in run.items] == ["pass"]
    assert "nameless is judged in this process, which it may end: it cannot be sent" in run.notes[0]


def test_a_function_that_has_a_name_travels() -> None:
    run = ConformanceRun([Implementation(prints_and_is_wrong, "wrong", supports=SUPPORTS)], [CLAUSES["IA-F-02"]])
    assert [run.judge(*item).outcome for item in run.items] == ["fail"] and not run.notes
    run.close()


def sleeps(query: Any, key: Any, value: Any) -> Any:
    time.sleep(1000)


def test_what_always_hangs_does_not_take_all_time() -> None:
    with Worker(Recipe(f"{__name__}:sleeps"), Limits(seconds=0.7)) as worker:
        said = [worker.judge(label, "float64").reason for label in ("IA-F-02", "IA-F-07", "IA-F-10", "IA-F-11")]
    assert all("more than 0.7 s" in text for text in said[:3]) and "more than 0.07 s" in said[3]


def slow_and_wrong(query: Any, key: Any, value: Any) -> Any:
    time.sleep(0.3)
    return 0 * indirect_attention(query, key, value)


def test_the_search_for_a_smaller_case_stops_in_time() -> None:
    with Worker(Recipe(f"{__name__}:slow_and_wrong"), Limits(seconds=3.0)) as worker:
        verdict = worker.judge("IA-F-01", "float64")
    assert verdict.outcome == "fail" and "times the bound" in verdict.reason and worker.drawn is not None


CALLS: list[int] = []


def changes_its_mind(query: Any, key: Any, value: Any, **keywords: Any) -> Any:
    CALLS.append(1)
    return indirect_attention(query, key, value, **keywords) * (1 + (len(CALLS) % 3 == 2))


def test_an_implementation_that_changes_its_mind() -> None:
    with Worker(Recipe(f"{__name__}:changes_its_mind")) as worker:
        verdict = worker.judge("IA-F-01", "float64")
    assert verdict.outcome == "fail" and "times the bound" in verdict.reason


def wrong_once(query: Any, key: Any, value: Any, **keywords: Any) -> Any:
    CALLS.append(1)
    return indirect_attention(query, key, value, **keywords) * (1 + (len(CALLS) == 1))


def test_a_failure_that_does_not_come_again_is_a_failure() -> None:
    once = Implementation(wrong_once, "wrong_once")
    CALLS.clear()
    verdict = judge(once, CLAUSES["IA-F-01"])
    assert verdict.outcome == "fail" and "times the bound" in verdict.reason
    CALLS.clear()
    found = answer(once, Question("IA-F-01", "float64", shrink=0.0))
    assert found.verdict is None and "equal calls have different outcomes" in found.broken


def reseeds(query: Any, key: Any, value: Any, **keywords: Any) -> Any:
    random.seed(len(CALLS))
    np.random.seed(len(CALLS))
    CALLS.append(1)
    return indirect_attention(query, key, value, scale=1.0)


def test_the_cases_do_not_depend_on_the_state_of_random_numbers() -> None:
    found = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        found.append(judge(Implementation(reseeds, "reseeds"), CLAUSES["IA-F-02"]))
    with Worker(Recipe(f"{__name__}:reseeds")) as worker:
        found.append(worker.judge("IA-F-02", "float64"))
    assert len({(v.outcome, v.reason, v.case, v.examples) for v in found}) == 1


def test_workers_die_with_the_run(tmp_path: Path) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from ia_core.conformance._worker import Worker, Recipe
worker = Worker(Recipe("tests.dying:loops"))
worker.implementation
print(worker._process.pid, flush=True)
worker.judge("IA-F-06", "float64")
"""
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=tmp_path, text=True)
    assert run.stdout is not None
    worker = int(run.stdout.readline())
    time.sleep(0.3)
    run.kill()
    run.wait()
    run.stdout.close()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{worker}").exists()


KERNEL = """
import pathlib
from ia_core import indirect_attention
def waits(query, key, value, *, mask=None, **keywords):
    if mask is not None:
        pathlib.Path("waiting").touch()
        while True:
            pass
    return indirect_attention(query, key, value, **keywords)
"""


def test_ctrl_c_reports_what_is_known(tmp_path: Path) -> None:
    (tmp_path / "kernels.py").write_text(KERNEL)
    words = [
        "conform",
        "kernels:waits",
        "--supports",
        ",".join(SUPPORTS),
        "--json",
        "known.json",
        "--html",
        "known.html",
    ]
    clauses = [word for label in CLAUSES_OF_DYING for word in ("--clause", label)]
    run = subprocess.Popen(
        [sys.executable, "-m", "ia_core._cli", *words, *clauses],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        text=True,
    )
    while not (tmp_path / "waiting").exists() and run.poll() is None:
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    said, errors = run.communicate(timeout=30)
    assert run.returncode == 130, said + errors
    assert "interrupted after 1 of 3 verdicts" in said and "1 pass" in said
    known = json.loads((tmp_path / "known.json").read_text())
    assert known["complete"] is False and len(known["verdicts"]) == 1
    assert (tmp_path / "known.html").exists()


def test_limits() -> None:
    assert Limits.of("quick", 7.0, 0.5) == Limits(seconds=7.0, memory=2**29)
    assert Limits.of("full", 900.0).start == 900.0
    assert 0 < default_memory() <= 2**33
    for keywords in ({"seconds": 0.0}, {"memory_gib": -1.0}, {"seconds": float("nan")}):
        with pytest.raises(ValueError, match=r"must be above 0; got .* \[IA-X-21\]"):
            Limits.of("quick", **keywords)


def test_ends_in_words() -> None:
    assert how_it_ended(-64) == "the process was killed by SIGRTMAX"
    assert how_it_ended(-50) == "the process was killed by signal 50"
    assert shorten("a\n" * 10, length=5) == "... a\na\na"


def test_progress_without_a_terminal_is_a_line_now_and_then(capfd: pytest.CaptureFixture[str]) -> None:
    with progress(3, every=0.0) as tell:
        for outcome in ("pass", "fail", "pass"):
            tell(Verdict("IA-F-01", "mine", outcome, dtype="float32"))
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[-1] == "2 of 3 judged, 1 failed, now after mine IA-F-01 float32"
