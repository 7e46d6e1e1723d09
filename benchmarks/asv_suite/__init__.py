"""Entry points for asv, which keeps the history: ``cd benchmarks && asv run``."""
