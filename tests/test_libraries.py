"""The same specification code agrees with the oracle on every array library."""

from __future__ import annotations

import pytest

from .library_checks import CHECKS, TABLE, Check, missing, table


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.run.__name__)
def test_library(check: Check) -> None:
    why_not = missing(check)
    if why_not:
        pytest.skip(why_not)
    check.run()


def test_table_in_the_docs_is_generated() -> None:
    assert TABLE.read_text(encoding="utf-8") == table(), "write it with: python -m tests.library_checks"
