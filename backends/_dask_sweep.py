"""Units of a sweep on a cluster of dask.distributed, whose workers must have this package."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import distributed

from .._sweep import Submit, Unit, UnitError, run_unit

__all__ = ["on_cluster"]


def on_cluster(address: str) -> Submit:
    """Runs units on the workers of a scheduler.

    Parameters
    ----------
    address : str
        Such as ``tcp://scheduler:8786``.

    Returns
    -------
    callable
        For :func:`ia_core._sweep.sweep`: pairs of a unit and its result, as they are finished. A worker that dies
        loses nothing but time.

    Raises
    ------
    OSError
        When called, if nobody answers at the address.
    """

    def submit(units: Sequence[Unit]) -> Generator[tuple[Unit, Any], None, None]:
        with distributed.Client(address, timeout="10s") as client:
            # Not pure: what a unit gives is kept by its content here, not by the cluster.
            futures = {
                client.submit(run_unit, unit.function, unit.arguments, key=f"unit-{unit.key}", pure=False): unit
                for unit in units
            }
            try:
                for future in distributed.as_completed(futures):
                    unit = futures[future]
                    if future.status != "finished":
                        raise UnitError(f"{unit.function}({unit.arguments}) raised {future.exception()!r}")
                    yield unit, future.result()
            finally:
                client.cancel(list(futures))

    return submit
