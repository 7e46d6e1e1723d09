"""The modules of Flax and Equinox against the specification with the same parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ia_core import Linear, PositionBias, init_multi_head, init_offset_mlp, multi_head_attention

jax = pytest.importorskip("jax")
jnp = jax.numpy
D_X, D_Y, EMBED, H, M, N = 5, 6, 12, 4, 7, 9
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped": {"num_kv_heads": 2},
    "no bias": {"bias": False},
    "as the paper": {"query_projection": False, "output_projection": False},
    "alibi": {"alibi": True, "hidden": 4},
}


@pytest.fixture(params=["flax", "equinox"])
def module(request: pytest.FixtureRequest) -> Any:
    """The class, and how one is made of a seed."""
    if request.param == "flax":
        nnx = pytest.importorskip("flax.nnx")
        from ia_core.backends import flax_module

        return flax_module.IndirectAttention, lambda seed: {"rngs": nnx.Rngs(seed)}
    pytest.importorskip("equinox")
    from ia_core.backends import equinox_module

    return equinox_module.IndirectAttention, lambda seed: {"key": jax.random.key(seed)}


def inputs(batch: tuple[int, ...] = (2,)) -> list[Any]:
    random = np.random.default_rng(6)
    shapes = ((*batch, M, EMBED), (*batch, N, D_X), (*batch, N, D_Y), (*batch, M))
    drawn = [jnp.asarray(random.normal(size=shape).astype(np.float32)) for shape in shapes]
    return [*drawn[:3], 3 * drawn[3], jnp.arange(N)]


def reference(params: Any, f: Any, given: list[Any], **keywords: Any) -> Any:
    landing = {"value_positions": given[4]} if keywords.pop("return_landing", False) else {}
    return multi_head_attention(params, *given[:3], bias=PositionBias(f, *given[3:]), **keywords, **landing)


def close(got: Any, want: Any) -> None:
    """float32, sums of some ten terms: a few hundred roundings of 6e-8 beside the largest number.

    Some gradients are 0, as that of the keys' bias, which moves all scores of a query alike.
    """
    size = max(float(jnp.max(jnp.abs(array))) for array in jax.tree.leaves(want))
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5 * size)


@pytest.mark.parametrize("name", SETTINGS)
def test_it_gives_the_numbers_of_the_specification(name: str, module: Any) -> None:
    kind, seeded = module
    made = kind(EMBED, H, kdim=D_X, vdim=D_Y, **SETTINGS[name], **seeded(3))
    params, f = made.to_reference()
    mask = jnp.asarray(np.random.default_rng(1).random((M, N)) < 0.7)
    for batch in ((), (2, 3)):
        given = inputs(batch)
        for keywords in ({}, {"mask": mask, "scale": 0.5, "return_landing": True}):
            close(made(*given, **keywords), reference(params, f, given, **keywords))


def test_there_and_back(module: Any) -> None:
    kind, _ = module
    params = init_multi_head(
        0, EMBED, H, key_heads=2, conditioning_width=D_X, content_width=D_Y, value_width=5, outputs=4
    )
    params = params._replace(key=Linear(params.key.weight))
    f = init_offset_mlp(1, H, hidden=8)
    made = kind.from_reference(params, f)
    for one, other in zip(jax.tree.leaves(made.to_reference()), jax.tree.leaves((params, f)), strict=True):
        np.testing.assert_array_equal(one, other)
    given = inputs()
    close(made(*given), reference(*made.to_reference(), given))
    assert made(*given).shape == (2, M, 4)


def test_the_seed_decides(module: Any) -> None:
    kind, seeded = module
    first, again, other = (jax.tree.leaves(kind(EMBED, H, **seeded(n)).to_reference()) for n in (3, 3, 4))
    assert all(jnp.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(jnp.array_equal(a, b) for a, b in zip(first, other, strict=True) if jnp.any(a != 0))
    with jax.enable_x64(not jax.config.jax_enable_x64):
        same = jax.tree.leaves(kind(EMBED, H, **seeded(3)).to_reference())
    assert all(jnp.array_equal(a, b) for a, b in zip(first, same, strict=True))


def test_it_is_differentiated_and_compiled_as_its_library_does(module: Any) -> None:
    kind, seeded = module
    made, given = kind(EMBED, H, kdim=D_X, vdim=D_Y, **seeded(3)), inputs()
    params, f = made.to_reference()
    want = jax.grad(lambda both: jnp.sum(jnp.sin(reference(*both, given))))((params, f))
    if kind.__module__.endswith("equinox_module"):
        import equinox

        gradients = equinox.filter_jit(equinox.filter_grad(lambda module: jnp.sum(jnp.sin(module(*given)))))(made)
        close((gradients.params, gradients.f), want)
        return
    from flax import nnx

    gradients = nnx.jit(nnx.grad(lambda module: jnp.sum(jnp.sin(module(*given)))))(made)
    flat = {".".join(map(str, path)): value[...] for path, value in nnx.to_flat_state(gradients)}
    parts = {f"f_{name}": array for name, array in want[1]._asdict().items()}
    for name, linear in want[0]._asdict().items():
        parts |= {f"{name}_{field}": array for field, array in linear._asdict().items()}
    close(dict(sorted(flat.items())), dict(sorted(parts.items())))


def test_sizes_that_do_not_fit(module: Any) -> None:
    kind, seeded = module
    with pytest.raises(ValueError, match=r"\[IA-X-33\]"):
        kind(EMBED, H, num_kv_heads=3, **seeded(0))
    with pytest.raises(ValueError, match=r"\[IA-X-33\]"):
        kind(EMBED, H, hidden=0, **seeded(0))
    name = "param_dtype" if kind.__module__.endswith("flax_module") else "dtype"
    for dtype in ("float64", "int32"):
        with jax.enable_x64(False), pytest.raises(ValueError, match=rf"floating.*; got {dtype} \[IA-X-33\]"):
            kind(EMBED, H, **{name: dtype}, **seeded(0))


def test_it_is_made_inside_of_traces(module: Any) -> None:
    """Shapes alone, and one module for each key of an axis, as stacked layers are made."""
    kind, seeded = module
    if kind.__module__.endswith("flax_module"):
        from flax import nnx

        shapes = nnx.state(nnx.eval_shape(lambda: kind(EMBED, H, rngs=nnx.Rngs(0))))
        made = [nnx.state(kind(EMBED, H, **seeded(0)))]
        stacked = nnx.state(nnx.vmap(lambda rngs: kind(EMBED, H, rngs=rngs))(nnx.Rngs(0).fork(split=2)))
    else:
        import equinox

        shapes = equinox.filter_eval_shape(lambda: kind(EMBED, H, **seeded(0)))
        made = [kind(EMBED, H, key=key) for key in jax.random.split(jax.random.key(1))]
        stacked = equinox.filter_vmap(lambda key: kind(EMBED, H, key=key))(jax.random.split(jax.random.key(1)))
        compiled = equinox.filter_jit(lambda key: kind(EMBED, H, key=key))(jax.random.split(jax.random.key(1))[0])
        close(compiled, made[0])
        close(stacked, jax.tree.map(lambda *parts: jnp.stack(parts), *made))
    for one, other, several in zip(*map(jax.tree.leaves, (shapes, made[0], stacked)), strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype and several.shape == (2, *other.shape)
    assert all(not np.array_equal(*leaf) for leaf in jax.tree.leaves(stacked) if leaf.any())


def test_flax_can_tabulate_it() -> None:
    nnx = pytest.importorskip("flax.nnx")
    from ia_core.backends.flax_module import IndirectAttention

    made = IndirectAttention(EMBED, H, kdim=D_X, vdim=D_Y, rngs=nnx.Rngs(0))
    assert "f_w1" in nnx.tabulate(made, *inputs())
