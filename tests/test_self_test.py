"""``ia-core conform --self-test``: the kill matrix, its reports, and what docs/mutants.md shows of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ia_core._cli import main
from ia_core.conformance import CLAUSES, _self_test
from ia_core.conformance._kills import as_data, lines_of, markdown, matrix_lines
from ia_core.conformance._self_test import Finding, Kills, self_test
from ia_core.conformance.mutants import MUTANTS

RECORDS = ("matrix", "full", "quick")
DOCS = Path(__file__).parents[1] / "docs"
TWO = [CLAUSES["IA-F-06"], CLAUSES["IA-X-11"]]


@pytest.fixture(scope="module")
def kills() -> Kills:
    return self_test(clauses=TWO, workers=0)


def test_matrix_asks_every_clause_about_every_bug(kills: Kills) -> None:
    assert len(kills.findings) == 2 * (len(MUTANTS) - len(kills.absent))
    assert kills.clauses_that_kill("mask_inverted") == ["IA-F-06"]
    assert kills.clauses_that_kill("mask_of_numbers_taken") == ["IA-X-11"]
    assert "scale_missing" in kills.survivors(0) and 0 < kills.rate(0) < 1 and not kills.good


def test_named_goes_on_to_the_other_clauses_for_survivors() -> None:
    # Of these two only F-06 is named by mask_inverted; nothing here is named by values_clipped_at_four.
    found = self_test(clauses=TWO, mode="named", workers=0)
    of_one = [f.label for f in found.findings if f.mutant == "mask_inverted"]
    of_other = [f.label for f in found.findings if f.mutant == "values_clipped_at_four"]
    assert of_one == ["IA-F-06"] and sorted(of_other) == ["IA-F-06", "IA-X-11"]


def test_processes_find_the_same(kills: Kills) -> None:
    apart = self_test(clauses=TWO, workers=1)
    assert {(f.mutant, f.label, f.outcome) for f in apart.findings} == {
        (f.mutant, f.label, f.outcome) for f in kills.findings
    }


def test_matrix_as_text(kills: Kills) -> None:
    lines = matrix_lines(kills)
    assert [line[-2:] for line in lines[:3]] == ["FX", "01", "61"]
    rows = {line.split()[0]: line[-2:] for line in lines[3:] if not line.startswith("--")}
    assert rows["mask_inverted"] == "x " and rows["scale_missing"] == ". " and rows["mask_of_numbers_taken"] == ".x"
    assert "survives: scale_missing (There is no default scale)" in "\n".join(lines_of(kills))


def test_data_and_tables(kills: Kills) -> None:
    data = json.loads(json.dumps(as_data(kills, {"ia-core": "0"})))
    by_name = {row["name"]: row for row in data["mutants"]}
    assert by_name["mask_inverted"]["killed_by"] == {"IA-F-06": 1}
    assert data["clauses"]["IA-F-06"]["kills"] > 5 and data["seeds"] == [0]
    assert "| mask_inverted | True means hidden | **IA-F-06**, (IA-E-08) |" in markdown(data)


def test_a_check_that_breaks_off_kills_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **keywords: object) -> None:
        raise RuntimeError("not the bug's fault")

    monkeypatch.setattr(_self_test, "judge", broken)
    found = _self_test.judge_one(MUTANTS["mask_inverted"], CLAUSES["IA-F-06"], "quick", 0)
    assert found.outcome == "broken" and found.reason == "RuntimeError: not the bug's fault"
    assert not Kills("quick", "named", (0,), [found]).good


def test_interruption_keeps_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(task: _self_test._Task) -> list[Finding]:
        if task.label == "IA-X-11":
            raise KeyboardInterrupt
        return [Finding("mask_inverted", task.label, 0, "killed")]

    monkeypatch.setattr(_self_test, "judge_task", interrupted)
    found = self_test(clauses=TWO, workers=0)
    assert not found.complete and len(found.findings) == 1
    assert "interrupted after 1 judgements" in lines_of(found)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    json_file, table = tmp_path / "kills.json", tmp_path / "kills.md"
    words = ["--self-test", "named", "--clause", "IA-X-11", "--workers", "1"]
    # Most bugs survive a single clause: the suite is not good enough so.
    assert main(["conform", *words, "--json", str(json_file), "--markdown", str(table)]) == 1
    said = capsys.readouterr().out
    assert re.search(r"seed 0: 1 of \d+ bugs killed", said)
    assert json.loads(json_file.read_text())["mode"] == "named" and "mask_of_numbers_taken" in table.read_text()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            ["reference-numpy", "--self-test"],
            "`--self-test` judges known bugs, and takes no target; got reference-numpy",
        ),
        (["--self-test", "named", "--seeds", "0"], "`--seeds` must be at least 1; got 0 [IA-X-21]"),
        (["--self-test", "named", "--clause", "IA-Z"], "`--clause` must start the label of a clause"),
    ],
)
def test_a_wrong_call_is_refused(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conform", *words]) == 2
    assert text in capsys.readouterr().err


def test_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be of matrix, named; got all \[IA-X-21\]"):
        self_test(mode="all")


def test_docs_list_the_registry() -> None:
    """``python -m ia_core.conformance._kills`` writes the table from the records in docs/results."""
    table = (DOCS / "generated" / "mutants.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([a-z][a-z0-9_]+) \| (.*?) \| \*?\*?\(?IA-", table, re.MULTILINE))
    assert rows == {name: mutant.change.replace("|", "\\|") for name, mutant in MUTANTS.items()}
    records = [json.loads((DOCS / "results" / f"self_test_{name}.json").read_text()) for name in RECORDS]
    assert markdown(*records) == table
    for record in records:
        assert record["complete"] and len(record["mutants"]) == len(MUTANTS)
    # Everything is killed in full with every seed, and nine in ten in quick.
    _, full, quick = records
    assert full["profile"] == "full" and len(full["seeds"]) == 20 and not any(full["survivors"].values())
    assert quick["profile"] == "quick" and len(quick["seeds"]) == 20 and min(quick["rates"].values()) >= 0.9
    page = (DOCS / "mutants.md").read_text(encoding="utf-8")
    assert "generated/mutants.md" in page and "generated/peer_criteria.md" in page
