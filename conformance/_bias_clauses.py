"""Family B: a bias given as a function of positions (P11, P12)."""

from __future__ import annotations

from ._case import Case, rng_of
from ._clause import clause, conforms
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
