"""The exact forms derived from the definition with SymPy, without numbers; and where the paper's need a condition.

Expectations are taken of polynomials in the tokens' components, term by term from their first two moments: no formula
of ``ia_core.noise`` is used to derive one, and each is then compared with what the code gives on symbols.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

sympy = pytest.importorskip("sympy")

from ia_core import noise  # noqa: E402

n, d = 3, 2
a = sympy.symbols(f"a1:{n + 1}", nonnegative=True)
S2 = sum(x**2 for x in a)
SUM_TO_ONE = {a[-1]: 1 - sum(a[:-1])}


def matrix(name: str, rows: int = d, columns: int = d) -> Any:
    return sympy.Matrix(rows, columns, lambda i, j: sympy.Symbol(f"{name}{i}{j}", real=True))


def symmetric(name: str, size: int = d) -> Any:
    return sympy.Matrix(size, size, lambda i, j: sympy.Symbol(f"{name}{min(i, j)}{max(i, j)}", real=True))


def vector(name: str) -> Any:
    return sympy.Matrix(1, d, lambda _, j: sympy.Symbol(f"{name}{j}", real=True))


class Tokens:
    """Rows of symbols for random tokens of one mean and covariance, independent of each other."""

    def __init__(self, name: str, mean: Any, covariance: Any) -> None:
        self.rows = [
            sympy.Matrix(1, mean.shape[1], lambda _, j, i=i: sympy.Symbol(f"{name}{i}_{j}")) for i in range(n)
        ]
        self.mean, self.covariance = mean, covariance

    def expectation(self, polynomial: Any) -> Any:
        """Of a polynomial of degree 2 at most, from E x = mu and E x x^T = Sigma + mu mu^T, and E x y = E x E y."""
        components = {x: (i, j) for i, row in enumerate(self.rows) for j, x in enumerate(row)}
        total = 0
        for powers, factor in sympy.Poly(sympy.expand(polynomial), *components).terms():
            there = [x for x, power in zip(components, powers, strict=True) for _ in range(power)]
            assert len(there) <= 2
            value = sympy.prod(self.mean[components[x][1]] for x in there)
            if len(there) == 2 and components[there[0]][0] == components[there[1]][0]:
                value += self.covariance[components[there[0]][1], components[there[1]][1]]
            total += factor * value
        return sympy.expand(total)


def square(row: Any) -> Any:
    return sum(x**2 for x in row)


def same(one: Any, other: Any) -> bool:
    """Equal as polynomials in everything, given that the weights sum to 1."""
    return sympy.expand((one - other).subs(SUM_TO_ONE)) == 0


def combined(rows: list[Any], weights: Any = a) -> Any:
    return sum((w * row for w, row in zip(weights, rows, strict=True)), sympy.zeros(1, rows[0].shape[1]))


def test_lemma_2_and_its_condition() -> None:
    sigma, W, C = sympy.Symbol("sigma", positive=True), matrix("w"), symmetric("c")
    eps = Tokens("e", sympy.zeros(1, d), sigma**2 * C)
    found = eps.expectation(square(combined(eps.rows) * W))
    assert same(found, sigma**2 * S2 * (W.T * C * W).trace())
    white = found.subs({C[0, 0]: 1, C[1, 1]: 1, C[0, 1]: 0})
    assert same(white, sigma**2 * S2 * square(W))
    angle = sympy.Symbol("angle", real=True)
    rotation = sympy.Matrix([[sympy.cos(angle), -sympy.sin(angle)], [sympy.sin(angle), sympy.cos(angle)]])
    of_rotation = sympy.simplify(white.subs(dict(zip(W, rotation, strict=True))) - sigma**2 * d * S2)
    assert sympy.simplify(of_rotation) == 0, "the paper's form, for orthonormal rows"
    assert not same(white.subs(dict(zip(W, 2 * sympy.eye(d), strict=True))), sigma**2 * d * S2)


def test_the_threshold_rises_with_a_mean() -> None:
    sigma, mu, Sigma = sympy.Symbol("sigma", positive=True), vector("m"), symmetric("s")
    x = Tokens("x", mu, Sigma)
    signal = x.expectation(square(combined(x.rows)))
    assert same(signal, Sigma.trace() * S2 + square(mu))
    threshold = Sigma.trace() / d + square(mu) / (S2 * d)  # of sigma^2
    assert sympy.simplify((signal.subs(SUM_TO_ONE) / (d * S2) - threshold).subs(SUM_TO_ONE)) == 0
    unit = {Sigma[0, 0]: 1, Sigma[1, 1]: 1}
    without_mean = {m: 0 for m in mu}
    assert sympy.simplify(threshold.subs(unit | without_mean)) == 1, "the paper's form"
    assert sympy.simplify(sympy.diff(threshold, mu[0])) != 0
    snr = (signal / (sigma**2 * d * S2)).subs(unit | without_mean).subs(SUM_TO_ONE)
    assert sympy.simplify(snr - 1 / sigma**2) == 0


def test_gamma_averages_the_variances() -> None:
    means, W = (vector("p"), vector("q")), matrix("w")
    joint = symmetric("s", 2 * d)
    both = Tokens("t", sympy.Matrix.hstack(*means), joint)
    Sx, Sy, C = joint[:d, :d], joint[d:, d:], joint[:d, d:]
    moved = combined([row[:, d:] - row[:, :d] for row in both.rows]) * W
    gamma = both.expectation(square(moved))
    shift = (means[1] - means[0]) * W
    assert same(gamma, S2 * (W.T * (Sx + Sy - C - C.T) * W).trace() + square(shift))
    units = {joint[i, j]: int(i == j) for i, j in itertools.product(range(2 * d), repeat=2)}
    identity = dict(zip(W, sympy.eye(d), strict=True))
    plain = gamma.subs(units).subs(identity)
    paper = 2 * d + square(means[1] - means[0])
    assert same(plain, 2 * d * S2 + square(means[1] - means[0]))
    assert same(plain.subs(dict(zip(a, (0, 1, 0), strict=True))), paper), "one-hot weights: the paper's form"
    # Elsewhere it lies below: 1 - S2 = sum_i a_i (1 - a_i), each term of which is not negative.
    assert same(paper - plain, 2 * d * sum(x * (1 - x) for x in a))
    one_sequence = {joint[i + d, j + d]: joint[i, j] for i in range(d) for j in range(i, d)}
    crossed = {joint[i, j + d]: joint[min(i, j), max(i, j)] for i in range(d) for j in range(d)}
    aligned = gamma.subs(crossed | one_sequence | dict(zip(means[1], means[0], strict=True)))
    assert sympy.expand(aligned) == 0, "one sequence has no misalignment with itself"


def test_misalignment_is_under_the_threshold_at_every_width() -> None:
    """SNR = (d S2 + ||mu||^2) / (2 d S2 + ||dmu||^2): 1/2 for means of 0, falling as the shift grows."""
    width, s2, shift = sympy.symbols("d S2 shift", positive=True)
    snr = (width * s2) / (2 * width * s2 + shift)
    assert sympy.simplify(snr.subs(shift, 0)) == sympy.Rational(1, 2)
    assert sympy.simplify(sympy.diff(snr, shift)).subs({width: 3, s2: 1, shift: 2}) < 0
    # gamma is compared with d sigma*^2, both energies: the paper compares it with sigma*^2, a variance per component.
    assert sympy.simplify(2 * width * s2 / (width * s2)) == 2


def test_heads_meet_where_projections_are_not_orthonormal() -> None:
    b = sympy.symbols(f"b1:{n + 1}", nonnegative=True)
    W, out = (matrix("v"), matrix("w")), (matrix("o"), matrix("u"))
    sigma = sympy.Symbol("sigma", positive=True)
    eps = Tokens("e", sympy.zeros(1, d), sigma**2 * sympy.eye(d))
    maps = [one * other for one, other in zip(W, out, strict=True)]
    output = combined(eps.rows) * maps[0] + combined(eps.rows, b) * maps[1]
    found = eps.expectation(square(output))
    overlap = sum(x * y for x, y in zip(a, b, strict=True))
    squares = (S2, sum(x**2 for x in b))
    wanted = sum(S * square(T) for S, T in zip(squares, maps, strict=True))
    wanted += 2 * overlap * (maps[0].T * maps[1]).trace()
    assert sympy.expand(found - sigma**2 * wanted) == 0
    # Two heads of width 1 out of tokens of width 2, an orthonormal output: the paper's form.
    chosen = ((W[0], (1, 0, 0, 0)), (out[0], (1, 0, 0, 0)), (W[1], (0, 0, 1, 0)), (out[1], (0, 1, 0, 0)))
    values = {x: y for symbols, entries in chosen for x, y in zip(symbols, entries, strict=True)}
    orthonormal = found.subs(values)
    assert sympy.expand(orthonormal - sigma**2 * d / 2 * (squares[0] + squares[1])) == 0
    # Both heads look through the same projection: what they share adds up.
    values |= dict(zip(W[1], (1, 0, 0, 0), strict=True)) | dict(zip(out[1], (1, 0, 0, 0), strict=True))
    assert sympy.expand(found.subs(values) - sigma**2 * (squares[0] + squares[1] + 2 * overlap)) == 0


def test_the_bound_of_lemma_1_is_the_triangle_inequality() -> None:
    """(sum a_i r_i)^2 - ||sum a_i e_i||^2 = 2 sum_{i<j} a_i a_j (r_i r_j - <e_i, e_j>), r_i = ||e_i||: not below 0."""
    eps = Tokens("e", sympy.zeros(1, d), sympy.eye(d))
    sizes = sympy.symbols(f"r1:{n + 1}", nonnegative=True)
    gap = sum(x * r for x, r in zip(a, sizes, strict=True)) ** 2 - square(combined(eps.rows))
    pairs = 2 * sum(
        a[i] * a[j] * (sizes[i] * sizes[j] - (eps.rows[i] * eps.rows[j].T)[0])
        for i, j in itertools.combinations(range(n), 2)
    )
    own = sum(x**2 * (r**2 - square(row)) for x, r, row in zip(a, sizes, eps.rows, strict=True))
    assert sympy.expand(gap - pairs - own) == 0
    # Cauchy and Schwarz: (||x|| ||y||)^2 - <x, y>^2 is a square in two dimensions.
    x, y = eps.rows[:2]
    assert sympy.expand(square(x) * square(y) - (x * y.T)[0] ** 2 - (x[0] * y[1] - x[1] * y[0]) ** 2) == 0


def test_softmax_passes_scores_on_by_its_jacobian() -> None:
    s, v = sympy.symbols(f"s1:{n + 1}", real=True), sympy.symbols(f"v1:{n + 1}", real=True)
    raised = [sympy.exp(x) for x in s]
    weights = [x / sum(raised) for x in raised]
    output = sum(w * x for w, x in zip(weights, v, strict=True))
    for j in range(n):
        assert sympy.simplify(sympy.diff(output, s[j]) - weights[j] * (v[j] - output)) == 0


CASES = [np.asarray([1.0, 0.0, 0.0]), np.asarray([0.5, 0.3, 0.2]), np.full(3, 1 / 3)]


@pytest.mark.parametrize("weights", CASES)
def test_the_code_has_both_forms(weights: np.ndarray) -> None:
    """Each erratum: the paper's form is right inside its condition and wrong outside."""
    mean, one_hot = np.asarray([1.0, -2.0]), weights.max() == 1
    assert noise.critical_sigma(weights, dim=d) == pytest.approx(noise.critical_sigma(weights, dim=d, form="paper"))
    exact, paper = (noise.critical_sigma(weights, mean=mean, form=form) for form in ("exact", "paper"))
    assert paper == 1
    assert exact == pytest.approx(np.sqrt(1 + 5 / np.sum(weights**2) / d))
    gammas = [noise.misalignment_energy(weights, mean_y=mean, form=form) for form in ("exact", "paper")]
    assert gammas[1] == 2 * d + 5
    assert (gammas[0] == pytest.approx(gammas[1])) == one_hot
    assert gammas[0] <= gammas[1] * (1 + 1e-15)
    energies = [noise.noise_energy(weights, 0.5, projection=2 * np.eye(d), form=form) for form in ("exact", "paper")]
    assert energies[0] == pytest.approx(4 * energies[1])
    heads = np.broadcast_to(weights, (2, 1, 3))
    several = [noise.multi_head_misalignment_energy(heads, mean_y=mean, form=form)[0] for form in ("exact", "paper")]
    assert several[1] == 2 * d + 5 / 2
    assert several[0] == pytest.approx(gammas[0])
    still = [noise.multi_head_misalignment_energy(heads, dim=d, form=form)[0] for form in ("exact", "paper")]
    assert (still[0] == pytest.approx(still[1])) == one_hot
