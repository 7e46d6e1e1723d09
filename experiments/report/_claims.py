"""The paper's claims, each with a verdict that is read off the results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ..synthetic._bound import most_without_the_others
from ._statistics import Estimate, Results

__all__ = ["Claim", "claims"]

HOLDS, NOT, WHEN, OPEN = "holds", "not reproduced", "holds when", "not run yet"
Read = Callable[[Any], float]


class Claim(NamedTuple):
    """What is claimed, where, and what was found."""

    text: str
    source: str
    verdict: str
    evidence: str


def claims(found: dict[str, Results]) -> list[Claim]:
    """All of them, in the paper's order; those that the project's own brief adds come last."""
    return [
        _order(found["synthetic"], "sorting", "cross"),
        _order(found["synthetic"], "retrieval", "query-run cross"),
        _bias(found["synthetic"]),
        _update(found["synthetic"]),
        _threshold(found["synthetic"]),
        _detection_naive(found["osod"]),
        _detection_cross(found["osod"]),
        _unseen(found["osod"]),
        _alignment(found["speech"]),
        _misalignment(found["retrieval"]),
    ]


def above(gap: Estimate | None) -> bool:
    """Whether a difference is positive beyond its interval."""
    return gap is not None and gap.low > 0.0


def _accuracy(one: Any) -> float:
    return float(one["accuracy"])


def _order(results: Results, task: str, natural: str) -> Claim:
    """Indirect above cross above naive (Figure 2)."""
    text = f"{task}: indirect > cross > naive"
    models = [f"{task}: {name}" for name in ("indirect", "cross", "naive")]
    first, second = results.gap(models[0], models[1], _accuracy), results.gap(models[1], models[2], _accuracy)
    if first is None or second is None:
        return Claim(text, "Figure 2", OPEN, "")
    over_naive = results.gap(models[0], models[2], _accuracy)
    assert over_naive is not None
    wins = results.wins(models[0], models[2], _accuracy)
    evidence = (
        f"indirect minus cross {first.text(3)}; cross minus naive {second.text(3)}; "
        f"indirect minus naive {over_naive.text(3)} "
        f"(above in {wins} seeds)"
    )
    if task == "sorting":
        evidence += f". Without self-attention cross-attention cannot exceed {most_without_the_others():.3f} here"
    best = results.of(f"{task}: {natural}", _accuracy)
    if natural != "cross" and best is not None:
        evidence += f". Cross-attention that asks with the run: {best.text(3)}"
    if above(first) and above(second):
        return Claim(text, "Figure 2", HOLDS, evidence)
    if above(first) and above(over_naive):
        other = "" if natural == "cross" else ", and cross-attention asks with the content"
        verdict = f"{NOT}; indirect > naive > cross {WHEN.removeprefix('holds ')} blocks have no self-attention{other}"
        return Claim(text, "Figure 2", verdict, evidence)
    return Claim(text, "Figure 2", NOT, evidence)


def _bias(results: Results) -> Claim:
    """The learned bias f."""
    text = "The learned bias on relative positions makes attention with foreign keys work"
    gaps = [results.gap(f"{task}: indirect", f"{task}: naive", _accuracy) for task in ("sorting", "retrieval")]
    if None in gaps:
        return Claim(text, "Section 4", OPEN, "")
    control = [
        results.gap(f"{task}, self-attention: indirect", f"{task}, self-attention: naive", _accuracy)
        for task in ("sorting", "retrieval")
    ]
    evidence = "with f against without, each with its own m: " + ", ".join(
        f"{task} {gap.text(3)}" for task, gap in zip(("sorting", "retrieval"), gaps, strict=True) if gap
    )
    pairs = {
        "an m for each query": ("sorting, ablation: embedding each", "sorting: naive"),
        "one m for all": ("sorting: indirect", "sorting, ablation: no bias"),
    }
    alike = {m: gap for m, pair in pairs.items() if (gap := results.gap(*pair, _accuracy))}
    evidence += "".join(f"; sorting with {m} in both {gap.text(3)}" for m, gap in alike.items())
    evidence += "; with self-attention " + ", ".join(gap.text(3) for gap in control if gap)
    if not all(map(above, gaps)):
        return Claim(text, "Section 4", NOT, evidence)
    whole = all(map(above, control))
    return Claim(text, "Section 4", HOLDS if whole else f"{WHEN} blocks have no self-attention", evidence)


def _update(results: Results) -> Claim:
    """The update g."""
    text = "Updating the relative positions between layers (P12) improves on a fixed bias"
    gaps = {
        task: results.gap(f"{task}: indirect", f"{task}, ablation: no update (static bias)", _accuracy)
        for task in ("sorting", "retrieval")
    }
    run = {task: gap for task, gap in gaps.items() if gap}
    if not run:
        return Claim(text, "Section 4", OPEN, "")
    evidence = "update minus static: " + ", ".join(f"{task} {gap.text(3)}" for task, gap in run.items())
    evidence += "".join(f"; {task} {OPEN}" for task in gaps if task not in run)
    good = [task for task, gap in run.items() if above(gap)]
    verdict = HOLDS if len(good) == 2 else f"{WHEN} the task is {good[0]}" if good else NOT
    return Claim(text, "Section 4", verdict, evidence)


def _threshold(results: Results) -> Claim:
    """A step at SNR = 1, which P7 places at sigma = 1."""
    text = "Noise on the values destroys the output beyond SNR = 1, at σ = 1 (P7)"

    def share(one: Any) -> float:
        by_sigma = dict(map(tuple, one["noise"]["sigma"]))
        return float(by_sigma[1.0] / by_sigma[0.0])

    names = ("sorting: indirect", "sorting: naive", "retrieval: indirect", "retrieval: query-run cross")
    kept = {name: found for name in names if (found := results.of(name, share))}
    if not kept:
        return Claim(text, "Section 3", OPEN, "")
    evidence = "of their accuracy at σ = 1: "
    evidence += ", ".join(f"{name} keeps {100.0 * found.mean:.0f} %" for name, found in kept.items())
    snr = [results.of(name, lambda one: float(one["noise"]["first_layer_snr"])) for name in kept]
    told = [found.mean for found in snr if found]
    evidence += f"; the first layer's own SNR there is {min(told):.1f} to {max(told):.1f}, not 1"
    verdict = (
        NOT if min(found.mean for found in kept.values()) > 0.5 else f"{WHEN} the model is one of those below half"
    )
    return Claim(text, "Section 3", verdict, evidence)


def _ap(part: str) -> Read:
    return lambda one: float(one[part]["AP50"])


def _detection_naive(results: Results) -> Claim:
    """Misaligned attention collapses (Table 1)."""
    text = "Misaligned attention without the bias collapses in detection (AP50 29 / 34 beside 83 / 65)"
    seen, gap = results.of("naive", _ap("seen")), results.gap("indirect", "naive", _ap("unseen"))
    if seen is None or gap is None:
        return Claim(text, "Table 1", OPEN, "")
    unseen = results.of("naive", _ap("unseen"))
    assert unseen is not None
    evidence = f"naive {seen.text(1)} / {unseen.text(1)} AP50; indirect minus naive on unseen classes {gap.text(1)}"
    verdict = HOLDS if seen.mean < 45.0 else f"{NOT}; it is {'worse' if above(gap) else 'not worse'}, and works"
    return Claim(text, "Table 1", verdict, evidence)


def _detection_cross(results: Results) -> Claim:
    """Better than double cross-attention (Table 1)."""
    text = "Indirect attention detects better than double cross-attention (AP50 82.9 beside 77.9 on seen classes)"
    plain = [results.gap("indirect", "double cross", _ap(part)) for part in ("seen", "unseen")]
    same = [results.gap("indirect", "double cross with the bias", _ap(part)) for part in ("seen", "unseen")]
    if None in plain or None in same:
        return Claim(text, "Table 1", OPEN, "")
    evidence = "indirect minus double cross " + " / ".join(gap.text(1) for gap in plain if gap)
    evidence += "; with the same box bias " + " / ".join(gap.text(1) for gap in same if gap) + " (seen / unseen)"
    if not all(map(above, plain)):
        return Claim(text, "Table 1", NOT, evidence)
    verdict = HOLDS if all(map(above, same)) else f"{WHEN} double cross-attention has no box bias"
    return Claim(text, "Table 1", verdict, evidence)


def _unseen(results: Results) -> Claim:
    """Classes that no training has."""
    text = "It finds objects of classes that it never saw, by the query image"
    unseen, blind = results.of("indirect", _ap("unseen")), results.of("indirect, query zeroed", _ap("unseen"))
    if unseen is None or blind is None:
        return Claim(text, "Tables 1 to 3", OPEN, "")
    evidence = f"AP50 {unseen.text(1)} on unseen classes; {blind.text(1)} with the query image zeroed"
    return Claim(text, "Tables 1 to 3", HOLDS if unseen.low > blind.high else NOT, evidence)


def _within(test: str) -> Read:
    return lambda one: float(one["tests"][test]["within_20_ms"])


def _alignment(results: Results) -> Claim:
    """Speech-text alignment."""
    text = "It aligns speech and text better than attention without the bias, and than cross-attention"
    read = _within("known voices")
    others = ("naive", "cross", "cross with the bias")
    gaps = {other: results.gap("indirect", other, read) for other in others}
    run = {other: gap for other, gap in gaps.items() if gap}
    if not run:
        return Claim(text, "project brief", OPEN, "")
    evidence = "points within 20 ms, indirect minus other: "
    evidence += ", ".join(f"{name} {gap.text(1)}" for name, gap in run.items())
    evidence += "".join(f"; {name} {OPEN}" for name in others if name not in run)
    best = results.of("viterbi", read)
    evidence += "" if best is None else f". Viterbi on such an encoder: {best.text(1)}"
    beaten = [name for name, gap in run.items() if above(gap)]
    if len(beaten) == len(others):
        return Claim(text, "project brief", HOLDS, evidence)
    verdict = f"{WHEN} the other is " + " or ".join(beaten) if beaten else NOT
    return Claim(text, "project brief", verdict, evidence)


def _misalignment(results: Results) -> Claim:
    """Retrieval under growing gaps; those up to 6 pixels are trained. Stable is to keep nine tenths of the best."""
    text = "Its performance stays stable under severe misalignment"

    def at(gap: str) -> Read:
        return lambda one: float(one["recall"][gap]["word_at_1"])

    recall = {gap: results.of("indirect", at(gap)) for gap in ("0", "3", "6", "12")}
    kept = {gap: found for gap, found in recall.items() if found}
    if len(kept) < len(recall):
        return Claim(text, "project brief", OPEN, "")
    evidence = "R@1 " + ", ".join(f"{found.text(1)} at gap {gap}" for gap, found in kept.items())
    evidence += "; gaps beyond 6 are beyond those of training"
    others = {name: results.gap("indirect", name, at("12")) for name in ("naive", "cross", "dual encoder")}
    run = [f"{name} {gap.text(1)}" for name, gap in others.items() if gap]
    evidence += "; indirect minus other at gap 12: " + ", ".join(run) if run else ""
    enough = 0.9 * max(found.mean for found in kept.values())
    trained = all(kept[gap].mean > enough for gap in ("0", "3", "6"))
    verdict = f"{WHEN} the gaps are those of training" if trained else NOT
    return Claim(text, "project brief", HOLDS if trained and kept["12"].mean > enough else verdict, evidence)
