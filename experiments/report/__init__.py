"""From the committed results to docs/reproduction.md and its figures."""

from ._page import write_report

__all__ = ["write_report"]
