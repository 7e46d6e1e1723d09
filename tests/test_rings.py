"""Attention over sharded sequences: the rings of JAX and PyTorch, in processes of their own."""

from __future__ import annotations

import importlib
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ia_core import BoxMLP, EdgeMLP, Grid, PositionBias, pixel_grid

ROOT = Path(__file__).parents[1]
slow = pytest.mark.slow


def start(*words: Any, devices: int = 1) -> subprocess.Popen[str]:
    # Gradients are compared with those of PyTorch, also those of JAX.
    own = str(words[0]).partition("-")[0]
    for library in {"torch", own}:
        pytest.importorskip(library)
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "OMP_NUM_THREADS": "1",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-m", "tests.rings_jax" if own == "jax" else "tests.rings", *map(str, words)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(*processes: subprocess.Popen[str], seconds: float = 240) -> list[tuple[int, str]]:
    try:
        said = [process.communicate(timeout=seconds)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


def all_well(*processes: subprocess.Popen[str]) -> None:
    for status, text in finish(*processes):
        assert status == 0, text


def test_jax_on_eight_devices() -> None:
    all_well(start("jax", "mlp", devices=8))


@slow
def test_jax_on_eight_devices_with_every_bias() -> None:
    all_well(start("jax", "none", "dense", "row", "-inf", "table", "linear", devices=8))


@slow
def test_jax_under_jit_with_heads_batch_or_queries_sharded() -> None:
    all_well(start("jax-sharded", devices=8))


def test_jax_under_shard_map_sums_what_is_whole_once() -> None:
    all_well(start("jax-by-hand", devices=8))


@slow
def test_jax_in_two_processes() -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    all_well(*(start("jax-process", number, port, devices=4) for number in range(2)))


def test_torch_in_two_processes(tmp_path: Path) -> None:
    all_well(*(start("torch", rank, 2, tmp_path / "meet") for rank in range(2)))


@slow
def test_torch_in_four_processes(tmp_path: Path) -> None:
    all_well(*(start("torch", rank, 4, tmp_path / "meet") for rank in range(4)))


@slow
def test_a_rank_that_dies_is_an_error_within_the_timeout(tmp_path: Path) -> None:
    ended = finish(*(start("torch-dies", rank, 3, tmp_path / "meet") for rank in range(3)), seconds=60)
    assert ended[1][0] == -9
    for status, text in (ended[0], ended[2]):
        assert status == 0 and "refused: " in text, text


def refused_on_four(query: tuple[int, ...], key: tuple[int, ...], axis: str, bias: Any, text: str) -> None:
    """A mesh of four devices refuses a call of ones."""
    jax = pytest.importorskip("jax")
    ring_attention = importlib.import_module("ia_core.backends.jax_ring").ring_attention
    mesh = jax.sharding.AbstractMesh((4,), ("keys",))
    q, k, bias = jax.numpy.ones(query), jax.numpy.ones(key), jax.tree.map(jax.numpy.asarray, bias)
    with pytest.raises(ValueError, match=text):
        ring_attention(q, k, k, bias=bias, mesh=mesh, axis=axis)


@pytest.mark.parametrize(
    ("M", "N", "axis", "text"),
    [
        (8, 8, "rows", r"`axis` must be one of the mesh, 'keys'; got 'rows' \[IA-X-25\]"),
        (30, 8, "keys", r"`query` must have M divisible by the 4 devices of mesh axis 'keys'; got M = 30 \[IA-X-25\]"),
        (8, 30, "keys", r"`key` must have N divisible by the 4 devices of mesh axis 'keys'; got N = 30 \[IA-X-25\]"),
    ],
)
def test_jax_refuses_a_mesh_that_does_not_divide(M: int, N: int, axis: str, text: str) -> None:
    refused_on_four((1, M, 2), (1, N, 2), axis, None, text)


def test_jax_refuses_what_is_no_mesh() -> None:
    jax = pytest.importorskip("jax")
    ring_attention = importlib.import_module("ia_core.backends.jax_ring").ring_attention
    q = jax.numpy.ones((1, 8, 2))
    with pytest.raises(ValueError, match=r"`mesh` must be a jax.sharding.Mesh; got NoneType \[IA-X-25\]"):
        ring_attention(q, q, q, mesh=None, axis="keys")


def test_jax_splits_a_grid_by_whole_rows() -> None:
    edge = EdgeMLP(*(np.ones(shape) for shape in ((2, 3), (3,), (3, 1), (1,))))
    bias = PositionBias(BoxMLP(edge, edge), np.ones((8, 4)), Grid(*map(np.asarray, pixel_grid(6, 4))))
    text = r"`bias.value_positions` must have rows divisible by the 4 .*; got rows = 6"
    refused_on_four((1, 8, 2), (1, 24, 2), "keys", bias, text)
