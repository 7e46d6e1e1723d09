"""What a call of the Triton kernels is made of: sizes of tiles, tables of the bias, order of tiles, strides."""

from __future__ import annotations

import functools
import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeAlias

import torch
import triton
from torch import Tensor

from ._triton_lines import pack_lines
from ._triton_order import order_tiles, span_tiles
from ._triton_tile import KINDS, SPARE

__all__ = ["Arguments", "Maybe", "Tables", "Tiling", "cdiv", "on", "shared_memory", "step", "tables_of", "tiling"]

Maybe: TypeAlias = Tensor | None
LOG2E = 1 / math.log(2)
BLOCK = 4096 if triton.knobs.runtime.interpret else 128  # numbers of the tables that one program writes
TILES = 256  # that one program looks at together, at most
# Of a bias in units of log 2: folded, its two parts are rounded apart, to a fraction of 2^-24 of them. In float32 that
# would be seen, and there an addition for each score costs little.
LARGEST_FOLDED = {torch.float32: 0.0, torch.float16: 2.0**9, torch.bfloat16: 2.0**10}


# Shared memory of a program, in bytes: compute capability 9.0 has 227 KiB, 8.0 has 163; 8.6, 8.9 and 12.0 have 99.
ROOMY, NARROW = 200 * 1024, 128 * 1024


class Tiling(NamedTuple):
    """Queries and keys of a tile, warps of a program, loads under way at a time, and registers."""

    rows: int
    columns: int
    warps: int
    stages: int
    registers: int | None = None  # of a thread, at most

    @property
    def options(self) -> dict[str, int | None]:
        return {"num_warps": self.warps, "num_stages": self.stages, "maxnreg": self.registers}


def tiling(kernel: str, half: bool, width: int, over: bool, memory: int) -> Tiling:
    """Sizes for one of the kernels ``bounded``, ``forward``, ``queries`` and ``keys``.

    ``width`` is the wider of D and Dv; ``over`` says whether a matrix or a mask lies over the scores, and ``memory`` is
    the shared memory of a program, in bytes.
    """
    if triton.knobs.runtime.interpret:
        return Tiling(32, 32, 1, 1)
    tile = _tiling(kernel, half, width)
    if memory >= ROOMY:
        return tile
    if memory >= NARROW:
        return tile._replace(stages=min(tile.stages, 2)) if over else tile
    if width > 128:
        return Tiling(32, 32, 4, 1) if half else Tiling(16, 16, 4, 1)
    return tile._replace(columns=min(tile.columns, 64), stages=1 if over or width > 64 else min(tile.stages, 2))


@functools.cache
def shared_memory(device: torch.device) -> int:
    """Bytes that a program may have."""
    return int(triton.runtime.driver.active.utils.get_device_properties(device.index)["max_shared_mem"])


def _tiling(kernel: str, half: bool, width: int) -> Tiling:
    if not half:
        # Beside a mask, 64 queries and 32 keys are too much for the registers of a program of `keys`.
        narrow = Tiling(32, 32, 4, 2) if kernel == "keys" else Tiling(64, 32, 4, 2)
        return narrow if width <= 64 else Tiling(32, 32, 4, 1)
    if width > 128:
        return Tiling(64, 32, 4, 2)
    return _HALVES[kernel, width > 64]


_HALVES = {
    ("bounded", False): Tiling(64, 64, 4, 2, 128),
    ("forward", False): Tiling(64, 128, 4, 3),
    ("queries", False): Tiling(64, 64, 4, 3, 168),
    ("keys", False): Tiling(64, 64, 4, 3),
    ("bounded", True): Tiling(128, 64, 8, 3),
    ("forward", True): Tiling(128, 64, 8, 3),
    ("queries", True): Tiling(64, 64, 4, 2),
    ("keys", True): Tiling(64, 64, 4, 2),
}


class Tables(NamedTuple):
    """The lines as the kernels read them, in units of log 2, each table longer than its cells."""

    edges: Tensor
    slopes: Tensor  # (H, row)
    lines: Tensor
    sizes: Tensor  # (2, row), of the largest slope and line of any head
    steps: int
    cells: int
    every: int  # 2 where knots have no cells of their own, and the cells are each second one of the lines

    @property
    def row(self) -> int:
        return self.slopes.shape[1]


class Arguments:
    """What the kernels have in common: arrays that are clean behind the mask, their strides and sizes."""

    def __init__(self, arrays: list[Tensor], bias: Maybe, mask: Maybe, scale: float, rounded: bool) -> None:
        arrays = _cleaned(arrays, mask)
        self.arrays = [array if array.stride(-1) == 1 else array.contiguous() for array in arrays]
        query, key, value = self.arrays
        (self.B, self.H, self.M, self.D), self.Hk, self.N = query.shape, key.shape[1], key.shape[2]
        self.Dv = value.shape[-1]
        self.width = max(self.D, self.Dv)
        self.half = query.dtype != torch.float32
        self.factor = scale
        self.natural = bias is not None
        self.scale = scale if self.natural else scale * LOG2E
        self.bias, self.mask = bias, mask
        bits = {torch.float16: 11, torch.bfloat16: 8}.get(query.dtype, 24)
        # Two halves leave 2^-18 of a weight in bfloat16, 64 units of float32. Sums of float32 may be off by more from
        # 64 terms on, (2 c_N + 8) units; below, three leave nothing, at a price that does not show.
        parts = 3 if bits == 8 and min(self.M, self.N) < 64 else 2
        self.parts = 0 if not self.half else 1 if rounded else parts
        # Products of float16 and numbers of any size are computed in float32: those would overflow, or lose their ends.
        self.gradient_parts = 0 if not rounded and bits == 11 else self.parts
        # float16 loses what is below 2^-24; weights are at most 1, and may be larger here.
        self.shift = 14 if bits == 11 else 0

    def tiling(self, kernel: str) -> Tiling:
        memory = 0 if triton.knobs.runtime.interpret else shared_memory(self.arrays[0].device)
        return tiling(kernel, self.half, self.width, self.bias is not None or self.mask is not None, memory)

    def options(self, tables: Tables | None, tile: Tiling) -> dict[str, Any]:
        """For the compiler: of a score that is a product alone, ``scale x - top`` as one operation is not 0 at the top.

        Where scores are large, the largest weight would be anything.
        """
        fused = tables is not None or self.bias is not None or self.mask is not None
        return tile.options | {"enable_fp_fusion": fused}

    @property
    def bounded(self) -> bool:
        """Whether weights as halves of float32's range stand for all that a softmax needs: nothing is masked."""
        return self.parts == 1 and self.shift == 0 and self.bias is None and self.mask is None

    @property
    def over_scores(self) -> list[Tensor]:
        """Pointers to a bias and a mask, or to something else."""
        mask = self.arrays[0] if self.mask is None else self.mask.view(torch.int8)
        return [self.arrays[0] if self.bias is None else self.bias, mask]

    def placed(
        self, tables: Tables | None, lines: list[Any], tile: Tiling, *, keys: bool = False
    ) -> tuple[list[Tensor], Tensor]:
        """What a kernel reads about positions and bias, and the least and largest offset of each block.

        Positions of the blocks, of queries or of ``keys``, and of the tiles; the order of these and its ends; edges,
        slopes and lines.
        """
        if tables is None:
            return self.arrays[:1] * 7, self.arrays[0]
        places = [at[:1] if at.stride(0) == 0 else at for at in lines[3:]]
        queries, values = (at if at.stride(1) == 1 else at.contiguous() for at in places)
        B = max(queries.shape[0], values.shape[0])
        counts = (cdiv(self.M, tile.rows), cdiv(self.N, tile.columns))
        own, others = (values, queries) if keys else (queries, values)
        blocks, tiles = counts[::-1] if keys else counts
        sizes = (tile.columns, tile.rows) if keys else (tile.rows, tile.columns)
        order = torch.empty((B, blocks, tiles), dtype=torch.int64, device=queries.device)
        ends = torch.empty((B, blocks, KINDS.value), dtype=torch.int32, device=queries.device)
        spans, reach = (queries.new_empty((B, count, 2)) for count in (blocks + tiles, blocks))
        places = queries.new_empty((B, tiles, 2, sizes[1]))
        span_tiles[(B, blocks + tiles)](
            own,
            others,
            spans,
            places,
            step(own),
            step(others),
            own.shape[1],
            others.shape[1],
            blocks,
            BLOCK=sizes[0],
            LENGTH=sizes[1],
            num_warps=1,
        )
        order_tiles[(B, blocks)](
            spans,
            tables.edges,
            tables.sizes,
            order,
            ends,
            reach,
            blocks,
            tiles,
            tables.row,
            TILES=min(TILES, triton.next_power_of_2(tiles)),
            STEPS=tables.steps,
            KEYS=keys,
            LARGEST=LARGEST_FOLDED[self.arrays[0].dtype],
            num_warps=4,
        )
        return [own, places, order, ends, tables.edges, tables.slopes, tables.lines], reach

    def strides(self, placed: list[Tensor]) -> list[int]:
        """Of query, key and value, of a bias and a mask, and of the batch of positions, places, order and ends."""
        found = [stride for array in self.arrays for stride in array.stride()]
        for array in (self.bias, self.mask):
            found += [0] * 4 if array is None else array.stride()
        return [*found, *(step(array) for array in placed[:4])]

    def sizes(self, tables: Tables | None) -> list[int]:
        group = self.H // self.Hk
        return [self.H, group, self.M, self.N, self.D, self.Dv, 0 if tables is None else tables.row]

    def constants(self, tile: Tiling, tables: Tables | None) -> dict[str, Any]:
        wide = [max(16, triton.next_power_of_2(width)) for width in (self.D, self.Dv)]
        return {
            "BLOCK_D": wide[0],
            "BLOCK_DV": wide[1],
            "ROWS": tile.rows,
            "COLUMNS": tile.columns,
            "STEPS": 0 if tables is None else tables.steps,
            "TAIL": self.N % tile.columns != 0,
            "PAD_D": wide[0] != self.D,
            "PAD_DV": wide[1] != self.Dv,
        }

    def of_scores(self) -> dict[str, Any]:
        """Whether there is a bias that is a matrix, and a mask, and whether scores are in natural units."""
        return {"DENSE": self.bias is not None, "MASKED": self.mask is not None, "NATURAL": self.natural}

    def rows(self, names: str) -> dict[str, int]:
        """From a row of query (Q), key (K) or value (V) to the next, where that is to be compiled in; else 0.

        So it is where rows follow each other, and where the heads of a row do: other numbers are too many, and so would
        be those of all widths that share code.
        """
        found = {}
        for name in names:
            array = self.arrays["QKV".index(name)]
            heads, size, width = array.shape[1:]
            common = size > 1 and width == max(16, triton.next_power_of_2(width))
            known = common and array.stride(2) in (width, heads * width)
            found[f"{name}_ROW"] = array.stride(2) if known else 0
        return found


def tables_of(lines: list[Any], smooth: bool) -> Tables:
    """The lines in units of log 2; of a ``smooth`` function, whose knots are edges, without cells for the knots."""
    knots, slopes, intercepts = lines[:3]
    K, H = knots.shape[0], slopes.shape[0]
    count, more = (K if smooth else 2 * K), int(SPARE.value)
    steps = max(1, count.bit_length())
    length, row = 2**steps + more, count + 1 + more
    held = knots.new_empty((length + 2 * (H + 1) * row,), dtype=torch.float32)
    edges, table = held[:length], held[length : length + 2 * H * row].view(2, H, row)
    sizes = held[length + 2 * H * row :].view(2, row)
    pack_lines[(cdiv(max(length, row), BLOCK), H)](
        knots,
        slopes,
        intercepts,
        edges,
        table,
        sizes,
        K,
        2 ** (K.bit_length() - 1) if K else 0,
        *slopes.stride(),
        *intercepts.stride(),
        length,
        row,
        SMOOTH=smooth,
        BLOCK=BLOCK,
        num_warps=4,
    )
    return Tables(edges, table[0], table[1], sizes, steps, count + 1, 2 if smooth else 1)


def _cleaned(arrays: list[Tensor], mask: Maybe) -> list[Tensor]:
    """Zeros where no attention is allowed; a key head for each query head where these have masks of their own."""
    if mask is None:
        return arrays
    query, key, value = arrays
    # Along expanded axes all is the same.
    own = mask[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in mask.stride())]
    asks, attended = own.any(-1, keepdim=True), own.any(-2)[..., None]  # (b, h, m, 1) and (b, h, n, 1)
    if attended.shape[1] != 1 and key.shape[1] != query.shape[1]:
        group = query.shape[1] // key.shape[1]
        key, value = (array.repeat_interleave(group, 1) for array in (key, value))
    return [torch.where(asks, query, 0.0), *(torch.where(attended, array, 0.0) for array in (key, value))]


def cdiv(one: int, other: int) -> int:
    """The quotient, rounded up."""
    return -(-one // other)


def step(array: Tensor) -> int:
    return 0 if array.shape[0] == 1 else array.stride(0)


def on(array: Tensor) -> AbstractContextManager[Any]:
    return torch.cuda.device(array.device) if array.is_cuda else nullcontext()
