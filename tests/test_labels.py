"""Labels stand in docs/spec.md and in the code, or nowhere."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ia_core.conformance import CLAUSES, FAMILIES
from ia_core.conformance._vectors_index import SPECIFICATION

ROOT = Path(__file__).parents[1]
LABEL = re.compile(r"IA-[A-Z]-\d\d")


def spec_labels() -> list[str]:
    """Labels that docs/spec.md defines: the first cell of a table's row."""
    return re.findall(r"^\| (IA-[A-Z]-\d\d) \|", (ROOT / "docs" / "spec.md").read_text("utf-8"), re.MULTILINE)


def labels_in(*folders: str) -> set[str]:
    """Labels that stand anywhere in the Python files of folders."""
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return {label for path in files for label in LABEL.findall(path.read_text("utf-8"))}


def raised_labels() -> set[str]:
    """Labels at the end of an error text."""
    files = [path for folder in ("ia_core", "backends", "conformance") for path in (ROOT / folder).rglob("*.py")]
    return {found for path in files for found in re.findall(r"\[(IA-X-\d\d)\]", path.read_text("utf-8"))} | {
        found for path in files for found in re.findall(r'"(IA-X-\d\d)"\)', path.read_text("utf-8"))
    }


def test_spec_defines_each_label_once() -> None:
    labels = spec_labels()
    assert len(labels) == len(set(labels))


def test_golden_vectors_name_the_version_of_the_spec() -> None:
    found = re.search(r"^Version (\d+\.\d+)\.", (ROOT / "docs" / "spec.md").read_text("utf-8"), re.MULTILINE)
    assert found is not None and found[1] == SPECIFICATION
    index = json.loads((ROOT / "conformance" / "vectors" / "index.json").read_text("utf-8"))
    assert index["specification"] == SPECIFICATION


def test_every_clause_is_in_the_spec() -> None:
    assert not set(CLAUSES) - set(spec_labels())


def test_every_label_of_the_spec_is_checked_or_raised() -> None:
    orphans = set(spec_labels()) - set(CLAUSES) - raised_labels()
    assert not orphans, f"in docs/spec.md, but neither checked by a clause nor raised by an error: {sorted(orphans)}"


def test_every_label_in_the_code_is_in_the_spec() -> None:
    orphans = labels_in("ia_core", "backends", "conformance", "tests") - set(spec_labels())
    assert not orphans, f"in the code, but not in docs/spec.md: {sorted(orphans)}"


def test_every_error_label_is_tested() -> None:
    tested = labels_in("tests") | {label for label in CLAUSES if label.startswith("IA-X")}
    assert not raised_labels() - tested, sorted(raised_labels() - tested)


@pytest.mark.parametrize("label", sorted(CLAUSES))
def test_clause_titles_are_statements(label: str) -> None:
    clause = CLAUSES[label]
    assert clause.family in FAMILIES
    assert clause.title[0].islower() and not clause.title.endswith(".")


def test_there_are_enough_clauses() -> None:
    assert len(CLAUSES) >= 25
