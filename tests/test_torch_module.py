"""The PyTorch module against the specification with the same parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ia_core import Linear, MultiHead, PositionBias, init_offset_mlp, multi_head_attention

torch = pytest.importorskip("torch")

from ia_core.backends.torch_module import IndirectAttention  # noqa: E402

D_X, D_Y, EMBED, H, M, N = 5, 6, 12, 4, 7, 9
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped": {"num_kv_heads": 2},
    "wide heads": {"head_dim": 5},
    "no bias": {"bias": False},
    "as the paper": {"query_projection": False, "output_projection": False},
    "one layer": {"hidden": 1},
    "alibi": {"alibi": True, "hidden": 4},
}


def module_of(name: str, **more: Any) -> IndirectAttention:
    torch.manual_seed(5)
    return IndirectAttention(EMBED, H, kdim=D_X, vdim=D_Y, dtype=torch.float64, **SETTINGS[name], **more)


def inputs(dtype: Any = torch.float64, batch: tuple[int, ...] = (2,)) -> list[Any]:
    generator = torch.Generator().manual_seed(6)
    shapes = ((*batch, M, EMBED), (*batch, N, D_X), (*batch, N, D_Y), (*batch, M))
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    return [*drawn[:3], 3 * drawn[3].to(torch.float64 if dtype == torch.float64 else torch.float32), torch.arange(N)]


def reference(module: IndirectAttention, given: list[Any], **keywords: Any) -> Any:
    params, f = module.to_reference()
    landing = {"value_positions": given[4]} if keywords.pop("return_landing", False) else {}
    return multi_head_attention(params, *given[:3], bias=PositionBias(f, *given[3:]), **keywords, **landing)


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
@pytest.mark.parametrize("name", SETTINGS)
def test_it_gives_the_numbers_of_the_specification(name: str, batch: tuple[int, ...]) -> None:
    module, given = module_of(name), inputs(batch=batch)
    mask = torch.rand(M, N, generator=torch.Generator().manual_seed(1)) < 0.7
    for keywords in ({}, {"mask": mask}, {"scale": 0.5}, {"return_landing": True, "mask": mask}):
        got, want = module(*given, **keywords), reference(module, given, **keywords)
        for one, other in zip(*((x if isinstance(x, tuple) else (x,)) for x in (got, want)), strict=True):
            assert one.shape == other.shape and one.dtype == other.dtype
            assert (one - other).abs().max() <= 1e-13 * other.abs().max()


@pytest.mark.parametrize("name", SETTINGS)
def test_gradients_of_all_parameters_are_those_of_the_specification(name: str) -> None:
    module, given = module_of(name), inputs()
    cotangent = torch.linspace(-1, 1, module(*given).numel(), dtype=torch.float64).reshape(module(*given).shape)
    parameters = list(module.parameters())
    got = torch.autograd.grad((module(*given) * cotangent).sum(), parameters)
    want = torch.autograd.grad((reference(module, given) * cotangent).sum(), parameters)
    for one, other in zip(got, want, strict=True):
        # The keys' bias moves all scores of a query alike: its gradient is 0, and what rounding leaves of it.
        assert (one - other).abs().max() <= 1e-12 * max(1.0, float(other.abs().max()))


@pytest.mark.parametrize("name", SETTINGS)
def test_there_and_back(name: str) -> None:
    module = module_of(name)
    params, f = module.to_reference()
    again = IndirectAttention.from_reference(params, f)
    assert module.state_dict().keys() == again.state_dict().keys()
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in module.state_dict().items())
    with torch.no_grad():
        again.f_w1 += 1.0
    assert not torch.equal(again.f_w1, module.f_w1)


def test_parameters_of_the_initialisers_come_from_numpy() -> None:
    params = _multi_head()
    f = init_offset_mlp(1, H, hidden=8)
    module = IndirectAttention.from_reference(params, f)
    given = inputs(torch.float32)
    numpy_given = [array.numpy() for array in given]
    want = multi_head_attention(params, *numpy_given[:3], bias=PositionBias(f, *numpy_given[3:]))
    assert module.k_proj.weight.dtype == torch.float32
    np.testing.assert_allclose(module(*given).detach().numpy(), want, rtol=0, atol=2e-6 * np.abs(want).max())


def _multi_head() -> MultiHead:
    random = np.random.default_rng(2)

    def linear(*shape: int, contracted: int = 1) -> Linear:
        draw = random.normal(size=shape).astype(np.float32) / 3
        return Linear(draw, random.normal(size=shape[contracted:]).astype(np.float32))

    return MultiHead(linear(EMBED, H, 3), linear(D_X, H, 3), linear(D_Y, H, 3), linear(H, 3, EMBED, contracted=2))


def test_a_state_dict_goes_into_another_module() -> None:
    one, other = module_of("plain"), IndirectAttention(EMBED, H, kdim=D_X, vdim=D_Y, dtype=torch.float64)
    assert not torch.equal(one.f_w1, other.f_w1)
    other.load_state_dict(one.state_dict())
    given = inputs()
    assert torch.equal(one(*given), other(*given))


def test_the_seed_of_pytorch_decides() -> None:
    first, again = module_of("plain"), module_of("plain")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_it_compiles_as_one_graph() -> None:
    module, given = module_of("plain"), inputs()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert (compiled(*given) - module(*given)).abs().max() <= 1e-14
    compiled(*given).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_projects_in_halves(dtype: Any) -> None:
    module, given = IndirectAttention(EMBED, H, kdim=D_X, vdim=D_Y), inputs(torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        output = module(*given)
    assert output.dtype == dtype
    close = {torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]  # a few roundings to the half's step, 2^-11 and 2^-8
    assert (output.float() - module(*given)).abs().max() <= close * module(*given).abs().max()
    output.sum().backward()
    assert module.f_w2.grad.dtype == torch.float32 and torch.any(module.f_w2.grad != 0)


def test_it_trains() -> None:
    """The content at a distance of 2: nothing but the bias can find it."""
    torch.manual_seed(0)
    module = IndirectAttention(8, 1, hidden=16)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    at, losses = torch.arange(12.0), []
    for _ in range(150):
        content = torch.randn(16, 12, 8)
        output = module(torch.zeros(16, 12, 8), torch.zeros(16, 12, 8), content, at, at)
        loss = ((output - content.roll(-2, 1))[:, :10] ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 < 0.9 < losses[0]


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ({"embed_dim": 0}, "`embed_dim` must be a positive integer; got 0 [IA-X-33]"),
        ({"num_heads": 0}, "`num_heads` must be a positive integer; got 0 [IA-X-33]"),
        ({"num_heads": 4.0}, "`num_heads` must be a positive integer; got 4.0 [IA-X-33]"),
        ({"kdim": 0}, "`kdim` must be a positive integer; got 0 [IA-X-33]"),
        ({"hidden": 0}, "`hidden` must be a positive integer; got 0 [IA-X-33]"),
        ({"num_kv_heads": 3}, "`num_heads` must be a multiple of `num_kv_heads`, 3; got 4 [IA-X-33]"),
        (
            {"query_projection": False, "head_dim": 5},
            "`embed_dim` must be num_heads * head_dim, 20, without a query projection; got 12 [IA-X-33]",
        ),
    ],
)
def test_sizes_that_do_not_fit(sizes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError) as caught:
        IndirectAttention(**({"embed_dim": EMBED, "num_heads": H} | sizes))
    assert str(caught.value) == text


def test_parameters_that_the_module_does_not_have() -> None:
    params, f = _multi_head(), init_offset_mlp(1, H)
    with pytest.raises(ValueError, match=r"a bias in each projection or in none, and D = Dv \[IA-X-33\]"):
        IndirectAttention.from_reference(params._replace(key=Linear(params.key.weight)), f)
    narrow = Linear(params.output.weight[..., :5], params.output.bias[:5])
    with pytest.raises(ValueError, match=r"back to the 12 features of the queries; got \(4, 3, 5\) \[IA-X-33\]"):
        IndirectAttention.from_reference(params._replace(output=narrow), f)


def test_errors_of_the_call_are_the_specifications() -> None:
    module, given = module_of("plain"), inputs()
    with pytest.raises(ValueError, match=r"\[IA-X-"):
        module(*given[:4], torch.arange(N + 1))
    for places in (None, list(range(N))):
        with pytest.raises(TypeError, match=r"`bias.value_positions` must be an array; got .*\[IA-X-01\]"):
            module(*given[:4], places, return_landing=True)


def test_it_is_made_without_memory_and_filled_later() -> None:
    torch.manual_seed(2)
    with torch.device("meta"):
        module = IndirectAttention(EMBED, H, alibi=True)
    assert all(parameter.is_meta for parameter in module.parameters())
    module.to_empty(device="cpu").reset_parameters()
    other = IndirectAttention(EMBED, H, alibi=True)
    for one, two in zip(module.parameters(), other.parameters(), strict=True):
        assert one.shape == two.shape and bool(torch.isfinite(one).all())
        assert float(one.detach().abs().max()) <= 4 * float(two.detach().abs().max()) + 1e-6


def test_it_is_made_of_fake_tensors() -> None:
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        module = IndirectAttention(EMBED, H)
        assert module(*(torch.ones(2, n, EMBED) for n in (M, N, N)), torch.arange(M), torch.arange(N)).shape[1] == M
    assert module.f_w2.shape[1] == H


def test_modules_side_by_side() -> None:
    """One call of torch.func.vmap for several modules, as ensembles are computed."""
    modules, given = [IndirectAttention(EMBED, H, kdim=D_X, vdim=D_Y).double() for _ in range(3)], inputs()
    parameters, buffers = torch.func.stack_module_state(modules)

    def one(parameters: Any, buffers: Any) -> Any:
        return torch.func.functional_call(modules[0], (parameters, buffers), tuple(given))

    got = torch.func.vmap(one)(parameters, buffers)
    for output, module in zip(got, modules, strict=True):
        assert (output - module(*given)).abs().max() <= 1e-13 * output.abs().max()


@pytest.mark.parametrize("name", SETTINGS)
def test_autocast_in_every_setting(name: str) -> None:
    module, given = module_of(name).float(), inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = module(*given)
    assert got.dtype == torch.bfloat16
    want = module(*given)
    # Three products of bfloat16 one after another, each rounded to 8 bits, beside sums of some ten terms.
    assert float((got.float() - want).abs().max()) <= 16 * 2.0**-8 * float(want.abs().max())


def test_heads_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"`embed_dim` must be a multiple of `num_heads`, 4, .*; got 10 \[IA-X-33\]"):
        IndirectAttention(10, 4)
    params, _ = module_of("plain").to_reference()
    with pytest.raises(ValueError, match=r"`params.query` must lead to the 2 heads of `f`.* \[IA-X-33\]"):
        IndirectAttention.from_reference(params, init_offset_mlp(0, 2))
