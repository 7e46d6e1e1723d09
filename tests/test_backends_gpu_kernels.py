"""The Triton kernels: what declines without a GPU, and their arithmetic in Triton's interpreter."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ia_core
from ia_core import OffsetMLP, OffsetTable, PiecewiseLinear, PositionBias
from ia_core.backends import available, indirect_attention, use_backend

torch = pytest.importorskip("torch")

ROOT = Path(__file__).resolve().parents[1]
PATHS = ("torch-triton", "torch-triton-rounded")


def why_no_interpreter() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    version = tuple(int(part) for part in importlib.metadata.version("triton").split(".")[:2])
    numpy = tuple(int(part) for part in np.__version__.split(".")[:2])
    if numpy >= (2, 4) and version < (3, 9):
        return f"the interpreter of Triton {version} does not run on NumPy {np.__version__}"
    return None


WHY = why_no_interpreter()
interpreted = [pytest.mark.slow, pytest.mark.skipif(WHY is not None, reason=str(WHY))]


@pytest.fixture
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # read when the kernels are imported, and by what declines


def test_without_a_gpu_the_paths_decline_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    q = torch.ones(1, 2, 4)
    why = "its kernels are for GPUs; on the CPU they run under TRITON_INTERPRET=1 alone"
    for path in PATHS:
        with use_backend(path), pytest.raises(ValueError, match="IA-X-23") as caught:
            indirect_attention(q, q, q)
        assert why in str(caught.value)


def test_they_are_for_those_who_ask() -> None:
    names = [path.name for path in available()]
    # torch-tiled declines nothing that they take.
    assert names.index("torch-tiled") < names.index("torch-triton") < names.index("torch-triton-rounded")


def call_of(M: int, N: int, *, hidden: int, H: int, Hk: int, D: int, Dv: int) -> tuple[list[Any], list[Any]]:
    """Query, key and value, and the parameters and positions of a network with knots all over its offsets."""
    random = np.random.default_rng([M, N, hidden])
    arrays = [random.normal(size=(2, h, n, d)) for h, n, d in ((H, M, D), (Hk, N, D), (Hk, N, Dv))]
    w1 = random.normal(size=hidden)
    leaves = [w1, -w1 * random.uniform(-N, N, size=hidden), random.normal(size=(hidden, H)) / N, np.zeros(H)]
    leaves += [np.sort(random.uniform(0, N, size=(2, M))), np.arange(float(N))]

    def leaf(one: Any) -> Any:
        return torch.as_tensor(one).float().requires_grad_()

    return list(map(leaf, arrays)), list(map(leaf, leaves))


def results(function: Any, arrays: list[Any], leaves: list[Any], mask: Any, wide: bool) -> list[Any]:
    """Output, lse and all gradients."""
    if wide:
        arrays, leaves = ([one.detach().double().requires_grad_() for one in each] for each in (arrays, leaves))
    bias = PositionBias(OffsetMLP(*leaves[:4]), *leaves[4:])
    output, lse = function(*arrays, bias=bias, mask=mask, return_lse=True)
    loss = (output * torch.linspace(-1, 1, output.numel()).reshape(output.shape)).sum()
    loss = loss + torch.where(torch.isinf(lse), 0.0, lse).sin().sum()
    return [one.detach().double() for one in (output, lse, *torch.autograd.grad(loss, [*arrays, *leaves]))]


def near(found: list[Any], true: list[Any], relative: float = 0.0) -> None:
    """Sums of some thousands of terms in float32, whose roundings add up like a random walk, beside the largest."""
    for got, want in zip(found, true, strict=True):
        finite, infinite = torch.isfinite(want), torch.isinf(want)
        assert torch.equal(torch.isnan(got), torch.isnan(want))
        assert torch.equal(got[infinite], want[infinite])
        largest = want[finite].abs().max()
        assert (got - want)[finite].abs().max() <= 1e-5 * max(1.0, largest) + relative * largest


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param({"M": 5, "N": 7, "hidden": 4, "H": 2, "Hk": 1, "D": 3, "Dv": 5}, marks=interpreted),
        pytest.param({"M": 97, "N": 300, "hidden": 3, "H": 1, "Hk": 1, "D": 16, "Dv": 16}, marks=interpreted),
        pytest.param({"M": 40, "N": 70, "hidden": 24, "H": 2, "Hk": 2, "D": 8, "Dv": 4}, marks=interpreted),
    ],
    ids=["grouped heads", "tiles on one line", "tiles of many knots"],
)
@pytest.mark.parametrize("masked", [False, True])
def test_values_and_gradients_are_those_of_the_reference(
    sizes: dict[str, int], masked: bool, interpreter: None
) -> None:
    arrays, leaves = call_of(**sizes)
    mask = None
    if masked:
        mask = torch.rand(sizes["M"], sizes["N"], generator=torch.Generator().manual_seed(1)) < 0.6
        mask[0] = False
    with use_backend("torch-triton"):
        found = results(indirect_attention, arrays, leaves, mask, wide=False)
    near(found, results(ia_core.indirect_attention, arrays, leaves, mask, wide=True))


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=interpreted) for kind in ("mlp", "table")])
def test_offsets_on_knots_have_the_gradient_of_the_knot(kind: str, interpreter: None) -> None:
    """Whole positions and knots at whole numbers: a ReLU has the derivative 0 at 0, on both of its sides."""
    q = torch.ones(1, 6, 2)
    places = torch.arange(6.0).requires_grad_()
    w1 = torch.tensor([1.0, -1.0, 2.0]).requires_grad_()
    b1 = torch.tensor([0.0, 0.0, -4.0]).requires_grad_()
    w2, b2 = torch.ones(3, 1).requires_grad_(), torch.zeros(1).requires_grad_()
    values = torch.tensor([[3.0, -1.0, 0.5, 2.0, -2.0]]).requires_grad_()
    f = OffsetMLP(w1, b1, w2, b2) if kind == "mlp" else OffsetTable(values)
    wanted, value = [*f, places], torch.arange(12.0).reshape(1, 6, 2)
    found = []
    for path in ("torch-triton", "reference"):
        with use_backend(path):
            output = indirect_attention(q, q, value, bias=PositionBias(f, places, places.detach()))
        found.append(torch.autograd.grad((output * value).sum(), wanted))
    near([one.double() for one in found[0]], [one.double() for one in found[1]])


@pytest.mark.parametrize("path", [pytest.param(path, marks=interpreted) for path in PATHS])
def test_positions_behind_a_mask_may_be_anything(path: str, interpreter: None) -> None:
    arrays, leaves = call_of(6, 40, hidden=4, H=1, Hk=1, D=4, Dv=4)
    if path == "torch-triton-rounded":  # which is torch-triton in float32
        arrays = [array.detach().bfloat16().requires_grad_() for array in arrays]
    mask = torch.ones(40, dtype=torch.bool)
    mask[-2:] = False
    wild = leaves[-1].detach().clone()
    wild[-2], wild[-1] = torch.nan, torch.inf
    with use_backend(path):
        want = results(indirect_attention, arrays, leaves, mask, wide=False)
        got = results(indirect_attention, arrays, [*leaves[:-1], wild.requires_grad_()], mask, wide=False)
    near(got, want)


def network(dtype: Any, *parts: Any) -> OffsetMLP:
    return OffsetMLP(*(torch.as_tensor(part, dtype=dtype) for part in parts))


@pytest.mark.parametrize("steep", [pytest.param(steep, marks=interpreted) for steep in (1e3, 1e6, 1e9)])
@pytest.mark.parametrize("path", PATHS)
def test_flat_cells_beside_steep_ones_are_exact(path: str, steep: float, interpreter: None) -> None:
    """A soft window and a soft causal mask: a network's unit adds nothing where it is off, however steep it is."""
    dtype = torch.float32 if path == "torch-triton" else torch.bfloat16
    random = np.random.default_rng(7)
    arrays = [torch.as_tensor(random.normal(size=(1, 70, 16))).to(dtype) for _ in range(3)]
    at = torch.arange(70)
    for parts in (
        ([1.0, -1.0], [-7.3, -7.3], [[-steep], [-steep]], [0.5]),
        ([1.0], [-0.3], [[-steep]], [0.5]),
        ([-1.0], [-0.3], [[-steep]], [0.5]),
    ):
        found = []
        for own, wide in ((path, False), ("reference", True)):
            given = [array.double() if wide else array.clone() for array in arrays]
            given = [array.requires_grad_() for array in given]
            f = network(torch.float64 if wide else torch.float32, *parts)
            with use_backend(own):
                output, lse = indirect_attention(*given, bias=PositionBias(f, at, at), return_lse=True)
            gradients = torch.autograd.grad((output.double() * given[2].detach().double()).sum(), given)
            found.append([one.detach().double() for one in (lse, output, *gradients)])
        exact = 5 if dtype == torch.float32 else 1
        near(found[0][:exact], found[1][:exact])
        assert (found[0][1] - found[1][1]).abs().max() <= 2**-6 * found[1][1].abs().max()  # rounded twice


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=interpreted) for kind in ("mlp", "lines")])
def test_little_in_a_steep_cell_has_its_own_sums(kind: str, interpreter: None) -> None:
    """Offsets 0.004 from a knot, where little flows, times a slope of 3000: differences of larger sums would show."""
    random = np.random.default_rng(3)
    arrays = [torch.as_tensor(random.normal(size=(1, 32, 16))).float() for _ in range(3)]
    found = []
    for path, dtype in (("torch-triton", torch.float32), ("reference", torch.float64)):
        given = [array.to(dtype).requires_grad_() for array in arrays]
        at = [torch.arange(32.0).to(dtype).requires_grad_() for _ in range(2)]
        if kind == "mlp":
            f: Any = network(dtype, [-1.0], [-0.996], [[-3000.0]], [0.5])
            parameters = [part.requires_grad_() for part in f]
        else:
            lines = ([-0.996], [[3000.0], [0.0], [0.0]], [[2988.5], [0.5], [0.5]])
            f, parameters = PiecewiseLinear(*(torch.tensor(part, dtype=dtype) for part in lines)), []
        with use_backend(path):
            output = indirect_attention(*given, bias=PositionBias(f, *at))
        wanted = [*given, *at, *parameters]
        gradients = torch.autograd.grad((output * given[2].detach()).sum(), wanted)
        found.append([one.detach().double() for one in (output, *gradients)])
    # Slope and line are rounded: the score beside the knot is off by 3000 units, and its weight by as much of itself.
    near(*found, relative=3000 * 2**-23)


@pytest.mark.parametrize("where", [pytest.param(where, marks=interpreted) for where in ("query", "key", "no query")])
def test_what_is_infinite_stays_in_its_row(where: str, interpreter: None) -> None:
    """Scores of -inf: nan, where there is any, is where the reference has it."""
    random = np.random.default_rng(11)
    arrays = [torch.as_tensor(random.normal(size=(1, 40, 16))).float() for _ in range(3)]
    if where == "query":
        arrays[0][0, 3, 2], arrays[1][0, :, 2] = -torch.inf, 1.0
    else:  # the last block of rows is not full
        arrays[1][0, 3, 2], arrays[0][0, :, 2] = torch.inf, -1.0
    M = 32 if where == "key" else 40
    found = []
    for path, dtype in (("torch-triton", torch.float32), ("reference", torch.float64)):
        q, k, v = (array.to(dtype) for array in arrays)
        given = [one.clone().requires_grad_() for one in (q[:, :M], k, v)]
        at = [torch.arange(float(n)).to(dtype).requires_grad_() for n in (M, 40)]
        with use_backend(path):
            f = network(dtype, [1.0], [-0.3], [[-1.0]], [0.5])
            output = indirect_attention(*given, bias=PositionBias(f, *at))
        gradients = torch.autograd.grad((output * torch.linspace(-1, 1, 16).to(dtype)).sum(), [*given[1:], *at])
        found.append([one.detach().double() for one in (output, *gradients)])
    near(*found)


LEFT = {  # of three blocks of rows, for each of two heads
    "none": [0, 0, 0],
    "long queries": [1, 0, 0],
    "infinite key": [1, 1, 1],
    "nothing near the top of the bias": [1, 1, 0],
    "a jump at the least offset": [0, 0, 0],
}


@pytest.mark.parametrize("case", [pytest.param(case, marks=interpreted) for case in LEFT])
def test_rows_whose_scores_may_be_far_below_their_bound_are_left(
    case: str, interpreter: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the kernel that looks for the largest score first; the results are those of the reference all the same."""
    from ia_core.backends import _triton_launch

    random = np.random.default_rng(5)
    q, k, v = (torch.as_tensor(random.normal(size=(h, 70, 16))).bfloat16() for h in (2, 1, 1))
    low, high, height, scale = 10.0, 30.0, 3.0, 1  # a hat over these offsets
    if case == "long queries":
        q[:, :32] *= 30
    elif case == "infinite key":
        k[0, 3, 2] = torch.inf
        q[:, :32, 2] = 0.0  # 0 times infinity is nan, and no bound sees it
        q[:, 32:, 2] = -1.0
    elif case == "nothing near the top of the bias":
        low, high, height = 10.2, 10.8, 300.0  # between whole offsets, of which the last block has none so large
    slope = 2 * height / (high - low)
    parts = ([1.0] * 3, [-low, -(low + high) / 2, -high], [[slope, -slope], [-2 * slope, 2 * slope], [slope, -slope]])
    f: dict[Any, Any] = {dtype: network(dtype, *parts, [0.0, 0.0]) for dtype in (torch.float32, torch.float64)}
    if case == "a jump at the least offset":
        scale = 64  # 30 just beyond the first block's least offset, and falling
        parts = ([-31 / 64], [[0.0] * 2, [0.0] * 2, [-32.0] * 2], [[0.0] * 2, [0.0] * 2, [14.5] * 2])
        f = {dtype: PiecewiseLinear(*(torch.tensor(part, dtype=dtype) for part in parts)) for dtype in f}
    left, own = [], _triton_launch._bounded
    monkeypatch.setattr(_triton_launch, "_bounded", lambda *given: left.append(own(*given)) or left[-1])
    found = []
    for path, dtype in (("torch-triton-rounded", torch.float32), ("reference", torch.float64)):
        at = [(torch.arange(70) / scale).to(dtype).requires_grad_() for _ in range(2)]
        given = [one.detach().to(dtype) if path == "reference" else one.detach().clone() for one in (q, k, v)]
        given = [one.requires_grad_() for one in given]
        with use_backend(path):
            output, lse = indirect_attention(*given, bias=PositionBias(f[dtype], *at), return_lse=True)
        gradients = torch.autograd.grad((output * v.detach()).double().sum(), [*given, *at])
        found.append([one.detach().double() for one in (output, lse, *gradients)])
    upside_down = [0, 0, 0] if case == "nothing near the top of the bias" else LEFT[case]  # the second head's hat
    assert left[0].tolist() == [*LEFT[case], *upside_down]
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-5, atol=1e-5, equal_nan=True)
    # Beyond the jump the gradients of positions are 32 times a sum that would be 0 without roundings.
    compared = {"infinite key": 2, "a jump at the least offset": 5}.get(case, 7)
    for at_, (got, want) in enumerate(zip(found[0], found[1], strict=True)):
        if at_ < compared:
            finite = torch.isfinite(want)
            assert torch.equal(torch.isfinite(got), finite)
            # Weights and results are rounded to bfloat16; gradients begin with a difference from the rounded output.
            bound = 2**-6 if at_ < 2 else 2**-4
            assert (got - want)[finite].abs().max() <= bound * max(1.0, want[finite].abs().max())


@pytest.mark.parametrize("together", [pytest.param(count, marks=interpreted) for count in (1, 2)])
def test_tiles_are_put_in_order_some_at_a_time(
    together: int, interpreter: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ia_core.backends import _triton_call

    monkeypatch.setattr(_triton_call, "TILES", together)
    arrays, leaves = call_of(20, 150, hidden=6, H=1, Hk=1, D=4, Dv=4)
    with use_backend("torch-triton"):
        found = results(indirect_attention, arrays, leaves, None, wide=False)
    near(found, results(ia_core.indirect_attention, arrays, leaves, None, wide=True))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize(
    "which", [("--first", "2"), ("--capability", "86", "--only", "'D': 128")], ids=["9.0", "less shared memory"]
)
def test_the_kernels_of_the_benchmark_compile_for_a_gpu_that_is_not_there(which: tuple[str, ...]) -> None:
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    words = [sys.executable, "benchmarks/offline_gpu.py", *which]
    ended = subprocess.run(words, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "forward:" in ended.stdout and "backward_keys:" in ended.stdout and "FAIL" not in ended.stdout


@pytest.mark.parametrize("seed", [pytest.param(seed, marks=interpreted) for seed in range(3)])
def test_networks_whose_knots_coincide_have_the_gradient_of_the_knot(seed: int, interpreter: None) -> None:
    """Units of either direction on few knots at whole numbers, and some that no offset reaches."""
    random = np.random.default_rng(seed)
    w1 = random.choice([-2.0, -1.0, 1.0, 2.0, 0.0], size=14)
    b1 = -w1 * random.integers(-2, 3, size=14) + (w1 == 0.0) * random.choice([-1.0, 1.0], size=14)
    parts = [torch.as_tensor(part).float() for part in (w1, b1, random.normal(size=(14, 2)) / 8, np.zeros(2))]
    arrays = [torch.as_tensor(random.normal(size=(2, 6, 3))).float() for _ in range(3)]
    found = []
    for path, dtype in (("torch-triton", torch.float32), ("reference", torch.float64)):
        q, k, v = (array.to(dtype) for array in arrays)
        leaves = [part.to(dtype).requires_grad_() for part in (*parts, torch.arange(6.0))]
        with use_backend(path):
            bias = PositionBias(OffsetMLP(*leaves[:4]), leaves[4], torch.arange(6))
            output = indirect_attention(q, k, v, bias=bias)
        found.append([output.detach().double(), *torch.autograd.grad((output * v).sum(), leaves)])
    near([one.double() for one in found[0]], found[1])
