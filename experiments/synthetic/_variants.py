"""What is trained: models, ablations and controls of the synthetic tasks, every choice an option with a name."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["VARIANTS", "Options"]


class Options(NamedTuple):
    """Choices of one variant; the paper leaves all below `model` open but the sizes.

    Attributes
    ----------
    task : "sorting" or "retrieval"
    model : "indirect", "naive", "cross", or "query-run" (cross-attention that asks with the conditioning)
    bias : whether cross-attention has the bias f and its updates (indirect attention always, naive never)
    update : None, "scalar", "position-aware" or "row"
    self_attention : whether the queries of a block attend to one another
    embedding : the m of P10: "each" (one for each query), "shared" (one, drawn like the rows of "each"), or "none",
        where the bias of the linear map on the value's feature is the one m of all queries
    value_feature : whether a query contains the value's feature
    key_positions, value_positions : whether the sources carry position rows
    readout : "token", "pointer" or "pooled"
    instances : of training, drawn once
    """

    task: str
    model: str = "indirect"
    bias: bool = False
    update: str | None = "scalar"
    self_attention: bool = False
    embedding: str = "each"
    value_feature: bool = True
    key_positions: bool = True
    value_positions: bool = True
    readout: str = "token"
    instances: int = 1000
    epochs: int = 20
    batch: int = 50
    rate: float = 2e-3
    decay: float = 2.0
    dropout: float = 0.2
    layers: int = 6
    heads: int = 4
    width: int = 128
    feed_forward: int = 256
    bias_hidden: int = 32
    test: int = 2000
    curve_points: int = 10
    noise: bool = False


# What each model does best with on the seeds of `tuning`: the naive one tells its queries apart by m alone.
_SORT = Options("sorting", embedding="none", key_positions=False, epochs=60)
_SORT_NAIVE = _SORT._replace(model="naive", embedding="each")
_SORT_CROSS = _SORT._replace(model="cross", embedding="each", key_positions=True)
_SORT_SELF = Options("sorting", self_attention=True, epochs=15)
_FIND = Options("retrieval", readout="pointer")
_FIND_RUN = _FIND._replace(model="query-run", readout="pooled")
_FIND_SELF = _FIND._replace(self_attention=True)


def _ablations(base: Options) -> dict[str, Options]:
    """Parts of indirect attention taken away or changed, one at a time."""
    return {
        "no update (static bias)": base._replace(update=None),
        "row update": base._replace(update="row"),
        "position-aware update": base._replace(update="position-aware"),
        **{
            f"embedding {other}": base._replace(embedding=other)
            for other in ("each", "shared", "none")
            if other != base.embedding
        },
        "no value feature": base._replace(value_feature=False, embedding="each"),
        "no value positions": base._replace(value_positions=False),
        "key positions" if not base.key_positions else "no key positions": base._replace(
            key_positions=not base.key_positions
        ),
    }


def _named(prefix: str, variants: dict[str, Options]) -> dict[str, Options]:
    return {f"{prefix}: {name}": options for name, options in variants.items()}


# The order is that of importance: a run that is cut short has the first ones.
VARIANTS: dict[str, Options] = {
    **_named(
        "sorting",
        {
            "indirect": _SORT._replace(noise=True),
            "naive": _SORT_NAIVE._replace(noise=True),
            "cross": _SORT_CROSS._replace(noise=True),
        },
    ),
    **_named(
        "retrieval",
        {
            "indirect": _FIND._replace(noise=True),
            "naive": _FIND._replace(model="naive", noise=True),
            "cross": _FIND._replace(model="cross", noise=True),
            "query-run cross": _FIND_RUN._replace(noise=True),
        },
    ),
    "sorting: cross with the bias": _SORT_CROSS._replace(bias=True),
    "retrieval: cross with the bias": _FIND._replace(model="cross", bias=True),
    "retrieval: query-run cross with the bias": _FIND_RUN._replace(bias=True),
    **_named(
        "sorting, self-attention",
        {
            "indirect": _SORT_SELF,
            "naive": _SORT_SELF._replace(model="naive"),
            "cross": _SORT_SELF._replace(model="cross"),
            "cross with the bias": _SORT_SELF._replace(model="cross", bias=True),
        },
    ),
    **_named(
        "retrieval, self-attention",
        {
            "indirect": _FIND_SELF,
            "naive": _FIND_SELF._replace(model="naive"),
            "cross": _FIND_SELF._replace(model="cross", readout="pooled"),
            "query-run cross": _FIND_SELF._replace(model="query-run", readout="pooled"),
        },
    ),
    **_named("sorting, ablation", _ablations(_SORT)),
    "sorting, ablation: no bias": _SORT._replace(model="naive"),
    "sorting, ablation: naive with key positions": _SORT_NAIVE._replace(key_positions=True),
    **_named("retrieval, ablation", _ablations(_FIND)),
    "sorting, 10 x data: indirect": _SORT._replace(instances=10_000, epochs=12),
    "sorting, 10 x data: naive": _SORT_NAIVE._replace(instances=10_000, epochs=12),
    "sorting, 10 x data: cross": _SORT_CROSS._replace(instances=10_000, epochs=12),
    "retrieval, 10 x data: indirect": _FIND._replace(instances=10_000, epochs=6),
    "retrieval, 10 x data: naive": _FIND._replace(model="naive", instances=10_000, epochs=6),
    "retrieval, 10 x data: query-run cross": _FIND_RUN._replace(instances=10_000, epochs=6),
    **{
        f"tuning, {base.task}: {base.model} at {rate:g}": base._replace(rate=rate, epochs=20)
        for base in (
            _SORT,
            _SORT_NAIVE,
            _SORT_CROSS,
            _FIND,
            _FIND._replace(model="naive"),
            _FIND._replace(model="cross"),
            _FIND_RUN,
        )
        for rate in (5e-4, 1e-3, 2e-3)
    },
    **{
        f"tuning, sorting: {base.model} for {epochs} epochs": base._replace(epochs=epochs)
        for base in (_SORT, _SORT_NAIVE, _SORT_CROSS)
        for epochs in (40, 60)
    },
    **{
        f"tuning, {base.task}: {base.model} with embedding {embedding}": base._replace(embedding=embedding, epochs=20)
        for base in (_SORT, _SORT_NAIVE, _SORT_CROSS, _FIND, _FIND._replace(model="naive"))
        for embedding in ("none", "shared", "each")
        if embedding != base.embedding
    },
}
