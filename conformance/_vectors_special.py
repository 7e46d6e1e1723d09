"""The catalogue of golden vectors: families S, P, G and B; see ``_vectors_forward``."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from ._vectors_draw import Draw
from ._vectors_forward import ALL, HALVES, WIDE, Question, question

__all__ = ["ELSEWHERE"]


@question("IA-S-01", ALL)
def masked_rows(d: Draw):
    mask = np.ones((3, 5), bool)
    mask[1] = False
    yield Question(d.case().but(mask=mask), "row 1 has nothing to attend to")
    yield Question(d.case(bias=True).but(mask=np.zeros(5, bool)), "no row has")


@question("IA-S-02", ALL)
def minus_inf_rows(d: Draw):
    bias = np.zeros((3, 5), d.kind)
    bias[1] = -np.inf
    yield Question(d.case().but(bias=bias), "row 1 has nothing to attend to")


@question("IA-S-03", ALL)
def minus_inf_lse(d: Draw):
    mask = np.ones((3, 5), bool)
    mask[2] = False
    yield Question(d.case().but(mask=mask), "by the mask", lse=True)
    bias = np.where(mask, 0.5, -np.inf).astype(d.kind)
    yield Question(d.case().but(bias=bias), "by the bias", lse=True)


@question("IA-S-04", ALL)
def no_keys(d: Draw):
    yield Question(d.case(N=0), "N = 0", lse=True)


@question("IA-S-05")
def no_queries(d: Draw):
    yield Question(d.case(M=0), "M = 0")
    yield Question(d.case(batch=(0,)), "no batch element")


@question("IA-S-06", ALL)
def poison(d: Draw):
    for poisoned in (np.nan, np.inf, -np.inf):
        case = d.case()
        key, value = case.key.copy(), case.value.copy()
        key[..., 2, :] = poisoned
        value[..., 2, :] = poisoned
        yield Question(case.but(key=key, value=value, mask=np.arange(5) != 2), f"{poisoned} behind the mask", lse=True)


@question("IA-S-07", ALL)
def nan_reaches(d: Draw):
    for name in ("query", "key", "value"):
        case = d.case(M=2, N=3)
        array = getattr(case, name).copy()
        array[0, 1, 0, 0] = np.nan
        yield Question(case.but(**{name: array}), f"nan in one {name} of head 1")


@question("IA-S-08", ALL)
def one_key(d: Draw):
    yield Question(d.case(N=1, bias=True), "the output is the value", lse=True)


@question("IA-S-09", ALL)
def large_scores(d: Draw):
    sign = np.where(d.below(2, 1, 2, 3, 5) == 1, 1.0, -1.0)
    for size in (1e4, -1e4):
        yield Question(d.case().but(bias=(size + 8 * sign).astype(d.kind)), f"{size:g} and 8 more or less")
    yield Question(d.case().but(bias=(1e4 * sign).astype(d.kind)), "10000 and -10000")


@question("IA-S-10", ALL)
def keys_taken_away(d: Draw):
    case = d.case(bias=True)
    bias = case.bias.copy()
    bias[..., ::2] = -np.inf
    yield Question(case.but(bias=bias), "-inf at keys 0, 2, 4")


@question("IA-S-12", ALL)
def least_finite(d: Draw):
    least = float(ml_dtypes.finfo(d.kind).min)
    case = d.case()
    equal = case.but(value=np.repeat(case.value[..., :1, :], 5, axis=-2))
    yield Question(equal.but(bias=np.full((3, 5), least, d.kind)), "everywhere, equal values", like=equal)
    found = []
    for taken in (least, -np.inf):
        bias = np.zeros((3, 5))
        bias[:, 1], bias[2, 3] = taken, taken
        found.append(case.but(bias=bias.astype(d.kind)))
    yield Question(found[0], "at some keys", like=found[1])


@question("IA-S-13")
def no_heads(d: Draw):
    yield Question(d.case(H=0), "H = Hk = 0")


@question("IA-S-14", ALL)
def inf_reaches(d: Draw):
    case = d.case()
    value = case.value.copy()
    value[0, 0, 2, 1], value[0, 1, 3, 0] = np.inf, -np.inf
    yield Question(case.but(value=value), "inf and -inf in one value each")


@question("IA-S-15", ALL)
def subnormal(d: Draw):
    info = ml_dtypes.finfo(d.kind)
    case = d.case()
    tiny = (np.arange(1, 6, dtype=np.float64) * float(info.smallest_subnormal)).astype(d.kind)
    key, bias = case.key.copy(), np.zeros((3, 5), d.kind)
    key[..., 1, :], bias[1] = tiny[:4], tiny
    yield Question(case.but(key=key, bias=bias), "a key and a row of the bias")
    value = case.value.copy()
    value[..., 0], value[..., 1] = tiny, 1 + np.arange(5).astype(d.kind)
    yield Question(case.but(value=value), "one column of the values")


@question("IA-P-01", ("float64",))
@question("IA-P-02", ("float32",))
@question("IA-P-03", ("float16",))
@question("IA-P-04", ("bfloat16",))
def precision(d: Draw):
    """Values that almost cancel: the rounding of the output is small, so that of the weights shows."""
    case = d.case(M=1, N=64, D=8, Dv=4)
    case = case.but(key=d.cast(case.key.astype(np.float64) / 16))  # weights close to 1 / 64
    value = case.value.astype(np.float64)
    value[..., 1::2, :] = -value[..., ::2, :]
    yield Question(case.but(value=value.astype(d.kind)), "values that almost cancel")
    yield Question(d.case(batch=(2,), N=9, D=8, bias=True), "the plain call")


@question("IA-P-05", ALL)
def long_row(d: Draw):
    case = d.case(H=1, M=1, N=4096, D=1, Dv=1)
    # Between 1 and 1.25: all of one sign, as many bits as the dtype has.
    value = d.cast(1 + np.abs(case.value.astype(np.float64)) / 8)
    yield Question(
        case.but(query=np.zeros_like(case.query), key=np.zeros_like(case.key), value=value), "4096 equal scores"
    )


@question("IA-P-06", HALVES)
def far_offsets(d: Draw):
    far = 2049 + 2 * np.arange(3)
    yield Question(d.positioned(d.case(), d.linear(2)._replace(slopes=d.parameters(2) / 64), far), "offsets to -2053")


@question("IA-P-07", HALVES)
def wide_bias(d: Draw):
    case = d.case(N=4)
    small = d.numbers(1, 2, 3, 4, dtype="float32") / np.float32(2)
    yield Question(case.but(bias=np.float32(64) + small), "float32 between 63 and 65, which a half rounds")


@question("IA-P-08", ("float16",))
def large_products(d: Draw):
    case = d.case(N=3)
    query = (case.query.astype(np.float64) * 128).astype(d.kind)
    key = (np.copysign(256, case.key.astype(np.float64)) + case.key.astype(np.float64)).astype(d.kind)
    yield Question(case.but(query=query, key=key, scale=2.0**-14), "products of some 65536 and more")


@question("IA-G-01", ALL)
def gradients(d: Draw):
    yield Question(d.case(), "", grad=True)
    yield Question(d.case(batch=(2,), Dv=3, mask=True, scale=0.3), "a mask and a scale", grad=True)
    yield Question(d.case(H=1, M=1, N=1, D=1, Dv=1), "one of everything", grad=True)


@question("IA-G-02", ALL)
def bias_gradients(d: Draw):
    yield Question(d.case(bias=True), "every score has its own", grad=True)
    for shape in ((5,), (3, 1), (2, 1, 1), (3, 5)):
        yield Question(d.case(batch=(2,), bias=shape), f"bias of shape {shape}", grad=True)


@question("IA-G-03", ALL)
def grouped_gradients(d: Draw):
    yield Question(d.case(H=4, Hk=2, M=2), "", grad=True)
    yield Question(d.case(H=3, Hk=1, M=2, bias=True, mask=True), "a bias and a mask", grad=True)


@question("IA-G-04", ALL)
def zero_gradients(d: Draw):
    mask = np.ones((3, 5), bool)
    mask[:, 2] = False
    mask[1] = False
    yield Question(d.case(bias=True).but(mask=mask), "nobody attends to key 2, row 1 to nothing", grad=True)
    yield Question(d.case(N=0), "N = 0", grad=True)


@question("IA-G-06")
def zero_cotangent(d: Draw):
    yield Question(d.case(bias=True), "", grad=True, zero_cotangent=True)


@question("IA-G-11", ALL)
def clean_gradients(d: Draw):
    case = d.case()
    key, value = case.key.copy(), case.value.copy()
    key[..., 2, :], value[..., 2, :] = np.nan, np.nan
    mask = np.broadcast_to(np.arange(5) != 2, (3, 5)).copy()
    yield Question(case.but(key=key, value=value, mask=mask), "nan behind the mask", grad=True)
    mask = mask.copy()
    mask[0] = False
    yield Question(case.but(key=key, value=value, mask=mask), "and a row with nothing to attend to", grad=True)


@question("IA-G-12", ALL)
def lse_gradients(d: Draw):
    yield Question(d.case(bias=True), "", grad=True, lse=True, lse_grad=True)
    yield Question(d.case(H=4, Hk=2, M=2, mask=True), "grouped, a mask", grad=True, lse=True, lse_grad=True)


@question("IA-G-13", WIDE)
def gradients_of_any_length(d: Draw):
    for N in (2, 7, 16, 17, 33, 64, 65):
        yield Question(d.case(H=1, M=2, N=N, D=2, Dv=2), f"N = {N}", grad=True)


@question("IA-B-01")
def offset_network(d: Draw):
    yield Question(d.positioned(d.case(), d.mlp(2)), "a network of the offset")
    yield Question(d.positioned(d.case(batch=(2,), H=4, Hk=2, mask=True), d.mlp(4)), "grouped, a mask", lse=True)


@question("IA-B-02")
def real_positions(d: Draw):
    yield d.positioned(d.case(), d.mlp(2), d.eighths(0, 5, 3))


@question("IA-B-03")
def boxes(d: Draw):
    yield Question(d.positioned(d.case(N=6), d.box(2), d.eighths(0, 4, 3, 4), d.grid(2, 3)), "2 rows, 3 columns")


@question("IA-B-04")
def tables(d: Draw):
    yield Question(d.positioned(d.case(N=6), d.table(2)), "integer offsets, some beyond the ends")
    yield Question(d.positioned(d.case(N=6), d.table(2), d.eighths(-1, 7, 3)), "offsets between the entries")


@question("IA-B-05")
def linear(d: Draw):
    yield d.positioned(d.case(), d.linear(2))


@question("IA-B-06")
def moved_positions(d: Draw):
    case, f, positions = d.case(), d.mlp(2), d.eighths(0, 5, 3)
    yield d.positioned(case, f, positions)
    yield Question(d.positioned(case, f, positions + d.eighths(-2, 2, 3)), "the queries have moved")


@question("IA-B-07")
def batched_positions(d: Draw):
    yield d.positioned(d.case(batch=(2,)), d.mlp(2), d.eighths(0, 5, 2, 3))


@question("IA-B-08")
def shifted_together(d: Draw):
    case, f = d.case(), d.mlp(2)
    yield d.positioned(case, f)
    yield Question(d.positioned(case, f, np.arange(3) + 1000, np.arange(5) + 1000), "all positions 1000 further")


@question("IA-B-09")
def unequal_grid(d: Draw):
    yield Question(d.positioned(d.case(N=8), d.box(2), d.eighths(0, 4, 3, 4), d.grid(4, 2)), "4 rows, 2 columns")
    yield Question(d.positioned(d.case(N=5), d.box(2), d.eighths(0, 5, 3, 4), d.grid(1, 5)), "1 row, 5 columns")


@question("IA-B-10")
def unsorted_positions(d: Draw):
    f = d.mlp(2)
    yield Question(d.positioned(d.case(), f, np.asarray([2, 0, 2])), "queries")
    yield Question(d.positioned(d.case(), f, np.asarray([2, 0, 2]), np.asarray([4, 1, 1, 0, 3])), "and values")


# Clauses of these families that one call with its truth cannot express, and why.
ELSEWHERE = {
    "IA-S-11": "about memory, not numbers",
    "IA-G-05": "compares an implementation with itself",
    "IA-G-07": "the oracle has no golden gradient of parameters",
    "IA-G-08": "about which inputs need a gradient",
    "IA-G-09": "about memory layout",
    "IA-G-10": "a second derivative",
    "IA-G-14": "the oracle has no golden gradient of positions",
}
