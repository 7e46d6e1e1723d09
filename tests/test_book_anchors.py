"""The book's sources: where each equation and erratum stands, what a chapter has, how terms are spelled.

Nothing is built here. That the claims of the pages hold is for their cells, which `make docs` runs.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
BOOK = DOCS / "book"
# Each has the anchor eq-P1 and so on, once, at the formula.
EQUATIONS = {
    "P1": "averaging",
    "P2": "values",
    "P3": "values",
    "P4": "values",
    "P5": "values",
    "P6": "threshold",
    "P7": "threshold",
    "P8": "misalignment",
    "P9": "misalignment",
    "P10": "indirect",
    "P11": "indirect",
    "P12": "updates",
}
# Each has an anchor erratum-P7 and so on.
ERRATA = dict.fromkeys(["P4", "P7", "P9", "comparison"], "errata")
CELL = re.compile(r"^```\{code-cell\}.*?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
HIDDEN = ("remove-input", "remove-cell")
NO_CHAPTERS = {"notation"}
CHAPTERS = sorted(path for path in BOOK.glob("*.md") if path.stem not in NO_CHAPTERS)
PAGES = sorted([*DOCS.glob("*.md"), *BOOK.glob("*.md")])


def anchors(prefix: str) -> dict[str, list[str]]:
    """The pages that have the anchor (prefix-NAME)=, by its name."""
    found: dict[str, list[str]] = {}
    for path in sorted(BOOK.glob("*.md")):
        for name in re.findall(rf"^\({prefix}-([^)]+)\)=$", path.read_text(encoding="utf-8"), re.MULTILINE):
            found.setdefault(name, []).append(path.stem)
    return found


def visible_cells(path: Path) -> list[str]:
    cells = CELL.findall(path.read_text(encoding="utf-8"))
    return [cell for cell in cells if not any(tag in cell.split("\n\n")[0] for tag in HIDDEN)]


@pytest.mark.parametrize(("prefix", "expected"), [("eq", EQUATIONS), ("erratum", ERRATA)])
def test_each_stands_where_the_table_says_and_once(prefix: str, expected: dict[str, str]) -> None:
    assert anchors(prefix) == {name: [page] for name, page in expected.items()}


@pytest.mark.parametrize("name", EQUATIONS)
def test_the_anchor_of_an_equation_is_followed_by_the_formula_with_its_number(name: str) -> None:
    text = (BOOK / f"{EQUATIONS[name]}.md").read_text(encoding="utf-8")
    assert re.search(rf"^\(eq-{name}\)=\n\$\$[^$]+\\tag\{{{name}\}}\s*\$\$$", text, re.MULTILINE)


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_says_what_it_teaches_has_exercises_and_goes_on(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    before_first_section = text.partition("\n## ")[0]
    assert "After this page you can" in before_first_section
    exercises, answers = text.count(":class: exercise"), text.count(":tags: [hide-cell]")
    assert exercises >= 1
    assert answers >= exercises, "each answer is a cell that runs"
    assert re.search(r"^Next: \[[^]]+\]\([\w/.-]+\.md\)", text.strip().splitlines()[-1])


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_cells_that_a_reader_sees_need_none_of_our_drawing_and_fit_the_page(path: Path) -> None:
    for cell in visible_cells(path):
        assert not re.search(r"\b(_kit|matplotlib)\b", cell)
        assert [line for line in cell.splitlines() if len(line) > 100] == []


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_is_in_the_table_of_contents(path: Path) -> None:
    assert f"\nbook/{path.stem}\n" in (DOCS / "index.md").read_text(encoding="utf-8")


def terms() -> list[str]:
    text = (BOOK / "notation.md").read_text(encoding="utf-8")
    glossary = re.search(r"```\{glossary\}\n(.*?)```", text, re.DOTALL)
    assert glossary
    return [line for line in glossary[1].splitlines() if line and not line.startswith(" ")]


def other_spellings(term: str) -> str:
    """A pattern of the term with its words joined in another way: with a hyphen, a space, or nothing between."""
    joints = re.findall(r"[ -]", term)
    words = re.split(r"[ -]", term)
    body = re.escape(words[0])
    for joint, word in zip(joints, words[1:], strict=True):
        body += ("-?" if joint == " " else r"\s?") + re.escape(word)
    return rf"(?<![\w-])(?:{body})s?(?![\w-])"


@pytest.mark.parametrize("term", [term for term in terms() if re.search(r"[ -]", term)])
def test_a_term_is_spelled_in_one_way(term: str) -> None:
    pattern = re.compile(other_spellings(term), re.IGNORECASE)
    other = [
        f"{path.relative_to(DOCS)}: {match}"
        for path in PAGES
        for match in pattern.findall(prose(path.read_text(encoding="utf-8")))
    ]
    assert other == []


def prose(text: str) -> str:
    """A page without its code, formulas and addresses."""
    text = re.sub(r"^(`{3,}).*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`]*`|\$\$.*?\$\$|\$[^$]*\$|\]\([^)]*\)|^\([\w-]+\)=$", "", text, flags=re.DOTALL | re.MULTILINE)


def test_another_spelling_is_found() -> None:
    assert re.search(other_spellings("one-hot"), "weights that are one hot")
    assert re.search(other_spellings("effective tokens"), "of effective-tokens")
    assert not re.search(other_spellings("one-hot"), "one-hot weights")
    assert not re.search(other_spellings("value projection"), "two value projections")
