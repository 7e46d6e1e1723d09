"""The installed package, away from the tree: one call equals the formula written out in NumPy."""

import sys
from pathlib import Path

import array_api_compat
import numpy as np

import ia_core
import ia_core.backends

TREE = Path(__file__).parents[1]
assert TREE not in Path(ia_core.__file__).parents, f"{ia_core.__file__} is the tree's, not the wheel's"

rng = np.random.default_rng(0)
query = rng.standard_normal((2, 4, 5, 8))  # (B, H, M, D)
key = rng.standard_normal((2, 4, 7, 8))  # (B, H, N, D)
value = rng.standard_normal((2, 4, 7, 3))  # (B, H, N, Dv)
bias = rng.standard_normal((4, 5, 7))  # (H, M, N)

scores = np.einsum("bhid,bhjd->bhij", query, key) / np.sqrt(8) + bias
weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
expected = np.einsum("bhij,bhjd->bhid", weights, value)

for attention in (ia_core.indirect_attention, ia_core.backends.indirect_attention):
    # Sums of 7 terms of order 1 in two orders differ by a few units of roundoff.
    np.testing.assert_allclose(attention(query, key, value, bias=bias), expected, rtol=0, atol=1e-14)

libraries = ", ".join(f"{one.__name__} {one.__version__}" for one in (np, array_api_compat))
print(f"ia_core {ia_core.__version__} on Python {sys.version.split()[0]}, {libraries}: right")
