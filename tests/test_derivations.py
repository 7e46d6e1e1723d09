"""The exact forms derived from the definition with SymPy, without numbers; and where the paper's need a condition.

Expectations are taken of polynomials in the tokens' components, term by term from their first two moments: no formula
of ``ia_core.noise`` is used to derive one. The code itself does not take symbols: where a derived form is held against
it (``agree``, and the last test), random numbers are put into both.
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

    def __init__(self, name: str, mean: Any, covariance: Any, count: int = n) -> None:
        self.rows = [
            sympy.Matrix(1, mean.shape[1], lambda _, j, i=i: sympy.Symbol(f"{name}{i}_{j}")) for i in range(count)
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


def agree(derived: Any, values: dict[Any, float], found: Any) -> None:
    """A derived form with numbers in it, and what the code gives for them."""
    assert float(derived.subs(values)) == pytest.approx(float(np.squeeze(found)), rel=1e-12)


def numbers(symbols: Any, drawn: np.ndarray) -> dict[Any, float]:
    return {x: float(value) for x, value in zip(symbols, np.ravel(drawn), strict=True)}


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
    """Means of 0: SNR 1/2; and the level of white noise with gamma's energy is sqrt(2), whatever the width and weights.

    The paper holds gamma, an energy of d components, against sigma*^2 = 1, the variance of one.
    """
    sigma, equal = sympy.Symbol("sigma", positive=True), []
    for width in (1, 2, 3):
        x, y, eps = (Tokens(name, sympy.zeros(1, width), sympy.eye(width)) for name in "xye")
        signal = x.expectation(square(combined(x.rows)))
        gamma = y.expectation(x.expectation(square(combined(y.rows) - combined(x.rows))))
        noisy = eps.expectation(square(sigma * combined(eps.rows)))
        assert same(2 * signal, gamma)
        (level,) = sympy.solve(sympy.Eq((noisy / gamma).subs(SUM_TO_ONE).simplify(), 1), sigma)
        equal.append(level)
        one_hot = gamma.subs(dict(zip(a, (0, 1, 0), strict=True)))
        assert one_hot == 2 * width, "which grows with the width where the level does not"
    assert equal == [sympy.sqrt(2)] * 3


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


def test_snr_of_a_misalignment_with_means() -> None:
    """(S2 tr Sigma_x + ||mu_x||^2) / (S2 tr(Sigma_x + Sigma_y - C - C^T) + ||mu_y - mu_x||^2), with a projection."""
    means, W, joint = (vector("p"), vector("q")), matrix("w"), symmetric("s", 2 * d)
    both = Tokens("t", sympy.Matrix.hstack(*means), joint)
    x, y = [row[:, :d] for row in both.rows], [row[:, d:] for row in both.rows]
    signal = both.expectation(square(combined(x) * W))
    gamma = both.expectation(square((combined(y) - combined(x)) * W))
    assert same(signal, S2 * (W.T * joint[:d, :d] * W).trace() + square(means[0] * W))
    units = {joint[i, j]: int(i == j) for i, j in itertools.product(range(2 * d), repeat=2)}
    plain = units | dict(zip(W, sympy.eye(d), strict=True))
    shift = square(means[1] - means[0])
    noted = (d * S2 + square(means[0])) / (2 * d * S2 + shift)  # section 3 of the notes on the paper
    ratio = (signal / gamma).subs(plain).subs(SUM_TO_ONE)
    assert sympy.cancel(sympy.together(ratio - noted.subs(SUM_TO_ONE))) == 0
    rng = np.random.default_rng(1)
    p, q, w, F = rng.standard_normal((2, d)), rng.standard_normal(d), rng.standard_normal((d, d)), np.eye(2 * d)
    F = F + 0.3 * rng.standard_normal((2 * d, 2 * d))
    S, weights = F @ F.T, np.asarray([0.5, 0.3, 0.2])
    values = numbers(a, weights) | numbers(means[0], p[0]) | numbers(means[1], q) | numbers(W, w) | numbers(joint, S)
    arrays = {"covariance_x": S[:d, :d], "covariance_y": S[d:, d:], "cross_covariance": S[:d, d:]}
    found = noise.misalignment_snr(weights, mean_x=p[0], mean_y=q, projection=w, **arrays)
    agree(signal / gamma, values, found)


def test_several_heads_with_means_and_covariances() -> None:
    """Signal and gamma: sum_hg G_hg tr(T_h^T C T_g) + ||mu sum_h T_h||^2, C and mu of x, and of y - x."""
    b = sympy.symbols(f"b1:{n + 1}", nonnegative=True)
    T, means, joint = (matrix("t"), matrix("u")), (vector("p"), vector("q")), symmetric("s", 2 * d)
    both = Tokens("z", sympy.Matrix.hstack(*means), joint)
    x = [row[:, :d] for row in both.rows]
    moved = [row[:, d:] - row[:, :d] for row in both.rows]
    Sx, difference = joint[:d, :d], joint[:d, :d] + joint[d:, d:] - joint[:d, d:] - joint[:d, d:].T
    to_one = SUM_TO_ONE | {b[-1]: 1 - sum(b[:-1])}
    overlaps = {(h, g): sum(i * j for i, j in zip((a, b)[h], (a, b)[g], strict=True)) for h in (0, 1) for g in (0, 1)}
    derived = []
    for rows, mean, C in ((x, means[0], Sx), (moved, means[1] - means[0], difference)):
        energy = both.expectation(square(combined(rows) * T[0] + combined(rows, b) * T[1]))
        wanted = sum(G * (T[h].T * C * T[g]).trace() for (h, g), G in overlaps.items()) + square(mean * (T[0] + T[1]))
        assert sympy.expand((energy - wanted).subs(to_one)) == 0
        derived.append(energy)
    rng = np.random.default_rng(2)
    p, q, F, t = rng.standard_normal(d), rng.standard_normal(d), rng.standard_normal((4, 4)), rng.standard_normal(8)
    weights, S = np.asarray([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]), F @ F.T
    values = numbers((*a, *b), weights) | numbers((*means[0], *means[1]), [*p, *q]) | numbers(joint, S)
    values |= numbers((*T[0], *T[1]), t)
    heads = {"value_projection": np.tile(np.eye(d), 2), "output_projection": t.reshape(2 * d, d)}  # T_h = O_h
    w = weights[:, None, :]
    agree(derived[0], values, noise.multi_head_signal_energy(w, mean=p, covariance=S[:d, :d], **heads))
    arrays = {"covariance_x": S[:d, :d], "covariance_y": S[d:, d:], "cross_covariance": S[:d, d:]}
    agree(derived[1], values, noise.multi_head_misalignment_energy(w, mean_x=p, mean_y=q, **arrays, **heads))


def test_the_papers_gamma_of_several_heads_and_its_condition() -> None:
    """P9, 2 d + (1/H) sum_h ||shift of head h||^2, for H = 2 with orthonormal projections."""
    b, shift, H = sympy.symbols(f"b1:{n + 1}", nonnegative=True), vector("m"), 2
    moved = Tokens("y", shift, 2 * sympy.eye(d))  # y - x: independent sequences of unit variance
    to_one = SUM_TO_ONE | {b[-1]: 1 - sum(b[:-1])}
    one_hot = dict(zip((*a, *b), (0, 1, 0, 1, 0, 0), strict=True))  # heads may look at different tokens
    # Heads that each have a part of the width: T_1 + T_2 = I.
    parts = [sympy.diag(1, 0), sympy.diag(0, 1)]
    gamma = moved.expectation(square(combined(moved.rows) * parts[0] + combined(moved.rows, b) * parts[1]))
    paper = 2 * d + square(shift) / H
    Sb = sum(x**2 for x in b)
    assert sympy.expand((gamma - (d * (S2 + Sb) + square(shift))).subs(to_one)) == 0
    still = dict.fromkeys(shift, 0)
    assert sympy.expand((gamma - paper).subs(one_hot).subs(still)) == 0, "inside: one-hot, no difference of the means"
    assert sympy.expand((gamma - paper).subs(one_hot) - square(shift) * (1 - sympy.Rational(1, H))) == 0, "a shift"
    # Weights that are spread: 2 d - d (S2 + Sb) = d sum (a_i (1 - a_i) + b_i (1 - b_i)), of which no term is negative.
    spread = d * sum(x * (1 - x) for x in (*a, *b))
    assert sympy.expand(((paper - gamma).subs(still) - spread).subs(to_one)) == 0
    # Heads as wide as a token, averaged: outputs side by side, divided by sqrt H, each through a rotation.
    angle = sympy.symbols("u v", real=True)
    turned = [sympy.Matrix([[sympy.cos(t), -sympy.sin(t)], [sympy.sin(t), sympy.cos(t)]]) for t in angle]
    outputs = [combined(moved.rows) * turned[0], combined(moved.rows, b) * turned[1]]
    wide = moved.expectation(sum(square(o) for o in outputs) / H).subs(one_hot)
    own = sum(square(shift * R) for R in turned) / H
    assert sympy.simplify(wide - (2 * d + own)) == 0, "inside, with a shift"


def perturbed(what: str) -> tuple[Any, dict[str, Any]]:
    """E||d/dt softmax(scale q (k_j + t e_j)) v||^2 at t = 0, or of (q + t e), times (sum_j r_j)^4; and the symbols.

    r_j = exp(scale q k_j) are symbols of their own, as scores may be any; the sum is that of the quotient rule.
    """
    scale, t = sympy.symbols("scale t", positive=True)
    raised = sympy.symbols(f"r1:{n + 1}", positive=True)
    query, keys, v = vector("q"), matrix("k", n), matrix("v", n)
    sigma = sympy.Symbol("sigma", positive=True)
    eps = Tokens("e", sympy.zeros(1, d), sigma**2 * sympy.eye(d), n if what == "key" else 1)
    steps = [query.dot(e) for e in eps.rows] if what == "key" else [eps.rows[0].dot(keys.row(j)) for j in range(n)]
    powers = [r * sympy.exp(scale * t * step) for r, step in zip(raised, steps, strict=True)]
    over, under = combined([v.row(j) for j in range(n)], powers), sum(powers)
    first = (over.diff(t) * under - over * sympy.diff(under, t)).subs(t, 0)
    symbols = {"scale": scale, "sigma": sigma, "raised": raised, "query": query, "keys": keys, "v": v}
    return eps.expectation(square(first)), symbols


@pytest.mark.parametrize("what", ["key", "query"])
def test_noise_of_keys_and_queries_to_first_order(what: str) -> None:
    """E of the first-order perturbation's square, against the closed form and the code."""
    found, at = perturbed(what)
    total = sum(at["raised"])
    w, v, k = at["raised"], at["v"], at["keys"]  # w: total times the weights, off: total times v_j - o
    off = [total * v.row(j) - combined([v.row(i) for i in range(n)], w) for j in range(n)]
    if what == "key":
        closed = square(at["query"]) * sum(x**2 * square(one) for x, one in zip(w, off, strict=True))
    else:
        closed = square(sum((w[j] * off[j].T * k.row(j) for j in range(n)), sympy.zeros(d, d)))
    closed *= (at["scale"] * at["sigma"]) ** 2
    assert sympy.expand(found - closed) == 0
    rng = np.random.default_rng(3)
    r, q, kn, vn = rng.uniform(0.1, 1, n), rng.standard_normal(d), *rng.standard_normal((2, n, d))
    values = {at["scale"]: 0.4, at["sigma"]: 0.3} | numbers(at["raised"], r) | numbers(v, vn)
    values |= numbers(at["query"], q) if what == "key" else numbers(k, kn)
    weights = (r / r.sum())[None]
    other = q[None] if what == "key" else kn
    agree(found / total**4, values, getattr(noise, f"{what}_noise_energy")(weights, other, vn, 0.3, scale=0.4))


def test_depth_without_normalisation() -> None:
    """Two layers x + A x W_l: the rows of W_l have mean 0 and a covariance of trace g^2, so E W W^T = g^2 I.

    From the definition: the second layer's W, then the first's, then the tokens, one expectation after the other.
    """
    C, g2, N = symmetric("c"), sympy.Symbol("g2", positive=True), 2
    trace = {C[1, 1]: g2 - C[0, 0]}
    layers = [Tokens(f"w{m}_", sympy.zeros(1, d), C, d) for m in range(2)]
    A = [sympy.Matrix(N, N, lambda i, j, m=m: sympy.Symbol(f"a{m}{i}{j}")) for m in range(2)]
    mu, sigma = vector("m"), sympy.Symbol("sigma", positive=True)
    energies = []
    for tokens in (Tokens("x", mu, sympy.eye(d), N), Tokens("e", sympy.zeros(1, d), sigma**2 * sympy.eye(d), N)):
        X = [sympy.Matrix(tokens.rows)]
        for mixing, W in zip(A, layers, strict=True):
            X.append(X[-1] + mixing * X[-1] * sympy.Matrix(W.rows))
        # One token's energy: the products of W_2 first, with the stream after one layer as it is.
        stream = matrix("h", N)
        last = stream + A[1] * stream * sympy.Matrix(layers[1].rows)
        energy = layers[1].expectation(square(last.row(0)))
        energy = layers[0].expectation(energy.subs(dict(zip(stream, X[1], strict=True))))
        energies.append(sympy.expand(tokens.expectation(energy).subs(trace)))
        start = tokens.expectation((tokens.rows[0] * tokens.rows[1].T)[0]), tokens.expectation(square(tokens.rows[0]))
        K = sympy.Matrix([[start[1], start[0]], [start[0], start[1]]])
        for mixing in A:
            K = K + g2 * mixing * K * mixing.T
        assert sympy.expand(energies[-1] - K[0, 0]) == 0
    rng = np.random.default_rng(4)
    weights, mean = rng.dirichlet(np.ones(N), size=(2, N)), rng.standard_normal(d)
    values = {g2: 0.36, sigma: 0.7} | numbers(mu, mean) | numbers((*A[0], *A[1]), weights)
    found = noise.depth_snr(weights, 0.7, mean_square=float(mean @ mean) / d, gain=0.6)
    agree(energies[0] / energies[1], values, found[-1, 0])


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
