"""The Python snippets of README.md and of the docs run, section by section."""

from __future__ import annotations

import doctest
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from .test_frame_doctests import OPTIONAL

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^(?P<indent> *)(?P<fence>```+|~~~+)\s*(?P<language>[^\s`]*)")


class Snippet(NamedTuple):
    """A fenced block: the section it stands in, its language, its text and its first line's number."""

    section: str
    language: str
    text: str
    line: int


def snippets(markdown: str) -> Iterator[Snippet]:
    """Fenced blocks of a page. A line that starts with # inside of one is no heading."""
    section, opened, lines = "", None, []
    for number, line in enumerate(markdown.splitlines(), 1):
        mark = FENCE.match(line)
        if opened is None and mark:
            opened, lines = (mark, number + 1), []
        elif opened and mark and not mark["language"] and mark["fence"].startswith(opened[0]["fence"]):
            first, width = opened[1], len(opened[0]["indent"])
            text = "".join(one[width:] + "\n" for one in lines)
            yield Snippet(section, opened[0]["language"], text, first)
            opened = None
        elif opened:
            lines.append(line)
        elif line.startswith("#"):
            section = line.lstrip("# ").strip()
    assert opened is None, f"a fence opened in section {section!r} is never closed"


def python_snippets(page: Path) -> list[Snippet]:
    return [one for one in snippets(page.read_text(encoding="utf-8")) if one.language in ("python", "pycon")]


def run(snippet: Snippet, page: str, names: dict[str, object]) -> None:
    """Execute a snippet in a namespace; one with prompts must print what it says."""
    if ">>> " not in snippet.text:
        # Empty lines in front, so that a traceback names the page's own lines.
        exec(compile("\n" * (snippet.line - 1) + snippet.text, page, "exec"), names)
        return
    test = doctest.DocTestParser().get_doctest(snippet.text, names, snippet.section, page, snippet.line - 1)
    result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS).run(
        test, clear_globs=False
    )
    names.update(test.globs)
    assert result.failed == 0, f"{page}: {result.failed} examples failed, see the output"


SECTIONS = sorted({(page, one.section) for page in PAGES for one in python_snippets(page)})
IDS = [f"{page.name}:{section}" for page, section in SECTIONS]


@pytest.mark.parametrize(("page", "section"), SECTIONS, ids=IDS)
def test_snippets_of_the_section_run(page: Path, section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for snippet in python_snippets(page):
        if snippet.section != section:
            continue
        try:
            run(snippet, str(page), names)
        except ModuleNotFoundError as error:
            if error.name in OPTIONAL:
                pytest.skip(f"{error.name} is not installed")
            raise


def test_the_readme_shows_each_of_the_three_uses() -> None:
    assert len(python_snippets(README)) >= 3


def test_blocks_and_sections_are_told_apart() -> None:
    page = "# A\n```sh\n# no heading\n```\n## B\n```python\nx = 1\n```\n- item\n  ```python\n  y = 2\n  ```\n"
    assert [tuple(one) for one in snippets(page)] == [
        ("A", "sh", "# no heading\n", 3),
        ("B", "python", "x = 1\n", 7),
        ("B", "python", "y = 2\n", 11),
    ]


def test_a_wrong_snippet_fails() -> None:
    with pytest.raises(ZeroDivisionError):
        run(Snippet("A", "python", "1 / 0\n", 1), "page", {})
    with pytest.raises(AssertionError, match="1 examples failed"):
        run(Snippet("A", "python", ">>> 1 + 1\n3\n", 1), "page", {})
