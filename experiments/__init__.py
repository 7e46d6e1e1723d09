"""The experiments: what of the paper holds, on tasks that anyone can rerun. ``python -m experiments --help``."""
