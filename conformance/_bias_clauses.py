"""Family B: a bias given as a function of positions (P11, P12)."""

from __future__ import annotations

import numpy as np

from ia_core import BoxMLP, EdgeMLP, Grid, LinearOffset, OffsetMLP, OffsetTable, PositionBias

from ._case import Case, rng_of
from ._clause import clause, conforms, within
from ._implementation import Implementation

__all__: list[str] = []

NEEDS = {"bias", "position_bias"}


@clause("IA-B-01", "offsets run from query position i to value position j", needs=NEEDS, bias="mlp", least=2)
def offset_sign(implementation: Implementation, case: Case) -> None:
    conforms(implementation, case)


@clause("IA-B-02", "positions may be real numbers", needs=NEEDS, bias="real", least=2)
def real_positions(implementation: Implementation, case: Case) -> None:
    conforms(implementation, case)


@clause("IA-B-03", "a box bias is separable, with the four edges in their places", needs=NEEDS, bias="box", least=2)
def box_bias(implementation: Implementation, case: Case) -> None:
    conforms(implementation, case)


@clause("IA-B-04", "a table is constant beyond its ends and linear between entries", needs=NEEDS, bias="table", least=2)
def offset_table(implementation: Implementation, case: Case) -> None:
    conforms(implementation, case)
    M = case.query.shape[-2]
    between = (rng_of(case).integers(-8, 16 * M, M) / 8).astype(case.bias.f.values.dtype)
    conforms(implementation, case.but(bias=case.bias._replace(query_positions=between)))


@clause("IA-B-05", "a linear bias falls with the distance", needs=NEEDS, bias="linear", least=2)
def linear_offset(implementation: Implementation, case: Case) -> None:
    conforms(implementation, case)


@clause("IA-B-06", "new query positions move the bias (P12)", needs=NEEDS, bias="real", least=2)
def position_update(implementation: Implementation, case: Case) -> None:
    conforms(implementation, case)
    moved = case.bias.query_positions + rng_of(case).standard_normal(case.query.shape[-2])
    moved = moved.astype(case.bias.query_positions.dtype)
    conforms(implementation, case.but(bias=case.bias._replace(query_positions=moved)))


@clause(
    "IA-B-07",
    "leading axes of the positions are those of the batch",
    needs=NEEDS | {"batch_axes"},
    bias="real",
    least=2,
    least_batch=1,
)
def batched_positions(implementation: Implementation, case: Case) -> None:
    batch, M = case.query.shape[:-3], case.query.shape[-2]
    positions = (4 * rng_of(case).random((*batch, M))).astype(case.bias.query_positions.dtype)
    conforms(implementation, case.but(bias=case.bias._replace(query_positions=positions)))


@clause(
    "IA-B-08",
    "positions of queries and values moved together change nothing",
    needs=NEEDS,
    examples=4,
    bias="none",
    least=2,
)
def moved_together(implementation: Implementation, case: Case) -> None:
    rng = rng_of(case)
    *_, M, N = case.scores_shape
    # Eighths of small whole numbers are exact, and so are their offsets after the move.
    real = (rng.integers(0, 8 * N, M) / 8).astype(working(case))
    for queries, values in ((np.arange(M), np.arange(N)), (real, np.arange(N)), (real, real_values(rng, N, real))):
        for f in functions_of(rng, case):
            there = case.but(bias=PositionBias(f, queries, values))
            wanted, bound = conforms(implementation, there)
            for c in (-40, 1000):
                moved = PositionBias(f, (queries + c).astype(queries.dtype), (values + c).astype(values.dtype))
                other = case.but(bias=moved)
                within(f"output {c} places on", implementation.run(other).output, wanted, 2 * bound, other)


@clause(
    "IA-B-09",
    "a box bias on a grid of unequal sides counts pixels by rows",
    needs=NEEDS,
    telling=False,
    examples=6,
    bias="none",
    mask="none",
)
def unequal_grid(implementation: Implementation, case: Case) -> None:
    rng, work = rng_of(case), working(case)
    M = case.query.shape[-2]
    sides = ((2, 3), (3, 2)) if implementation.few_shapes else ((2, 3), (3, 2), (1, 4), (4, 1), (2, 5))
    for R, W in sides:
        key, value = (
            rng.standard_normal((*array.shape[:-2], R * W, array.shape[-1])).astype(case.query.dtype)
            for array in (case.key, case.value)
        )
        corners = (rng.random((M, 4)) * (W, R, W, R)).astype(work)
        for shift in (0.0, 0.5):  # lines through the pixels' corners, and through their centres
            grid = Grid(np.arange(W, dtype=work) + work.type(shift), np.arange(R, dtype=work) + work.type(shift))
            f = BoxMLP(edge(rng, case), edge(rng, case))
            conforms(implementation, case.but(key=key, value=value, bias=PositionBias(f, corners, grid)))


@clause("IA-B-10", "positions need not be in order, nor differ", needs=NEEDS, examples=6, bias="none", least=2)
def unsorted_positions(implementation: Implementation, case: Case) -> None:
    rng, work = rng_of(case), working(case)
    *_, M, N = case.scores_shape
    whole = [rng.integers(0, max(2, n // 2 + 1), n) for n in (M, N)]
    real = [(8 * rng.random(n)).astype(work) for n in (M, N)]
    for positions in real:
        positions[-1] = positions[0]
    descending = [np.arange(n)[::-1].copy() for n in (M, N)]
    for queries, values in (whole, real, descending, (real[0], whole[1])):
        for f in functions_of(rng, case):
            conforms(implementation, case.but(bias=PositionBias(f, queries, values)))
    corners = (4 * rng.random((M, 4))).astype(work)
    corners[-1] = corners[0]
    lines = rng.permutation(N).astype(work)
    lines[-1] = lines[0]
    for grid in (Grid(lines, np.zeros(1, work)), Grid(np.zeros(1, work), lines)):
        box = BoxMLP(edge(rng, case), edge(rng, case))
        conforms(implementation, case.but(bias=PositionBias(box, corners, grid)))


def functions_of(rng: np.random.Generator, case: Case) -> list[OffsetMLP | OffsetTable | LinearOffset]:
    """One of each function of one offset."""
    H = case.query.shape[-3]
    return [
        OffsetMLP(*(normal(rng, case, *size) for size in ((5,), (5,), (5, H), (H,)))),
        OffsetTable(normal(rng, case, H, 7)),
        LinearOffset(abs(normal(rng, case, H))),
    ]


def edge(rng: np.random.Generator, case: Case) -> EdgeMLP:
    """One axis of a box bias."""
    H = case.query.shape[-3]
    return EdgeMLP(*(normal(rng, case, *size) for size in ((2, 5), (5,), (5, H), (H,))))


def real_values(rng: np.random.Generator, N: int, like: np.ndarray) -> np.ndarray:
    """Real positions of values, in eighths."""
    return (rng.integers(0, 8 * N, N) / 8).astype(like.dtype)


def normal(rng: np.random.Generator, case: Case, *size: int) -> np.ndarray:
    """Normal numbers in the working precision."""
    return rng.standard_normal(size).astype(working(case))


def working(case: Case) -> np.dtype:
    """The dtype of parameters and real positions."""
    return np.dtype("float64" if case.dtype == "float64" else "float32")
