"""Noise thresholds of attention weights that were really learned: a small language model on the text of pydoc.

    python benchmarks/trained_weights.py [--steps 600] [--out FILE]

Trains a causal transformer over characters (3 layers, 4 heads, width 64) on the help texts that come with Python, in
about a minute. Then, for every layer and head, on text that it was not trained on: the effective tokens of its weights,
the threshold sigma* for the values as they are distributed there (ia_core.noise.critical_sigma with their mean and
covariance), and, because learned weights are not independent of the values as the theory assumes, the level at which
noise really has the energy of the head's output. Writes docs/generated/trained_weights.md beside FILE.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import pydoc_data.topics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from ia_core import noise
from ia_core.conformance._files import write_whole

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs/results/trained_weights.json"
LAYERS, HEADS, WIDTH, CONTEXT, BATCH, SEED = 3, 4, 64, 64, 16, 11


class Layer(nn.Module):
    """Causal self-attention and a feed-forward network, each after a normalisation; remembers what it attended to."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)
        self.feed = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        self.weights: Any = None
        self.values: Any = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, N, WIDTH) to the same."""
        parts = self.qkv(self.before(x)).unflatten(-1, (3, HEADS, WIDTH // HEADS)).permute(2, 0, 3, 1, 4)
        query, key, value = parts
        scores = query @ key.mT / (WIDTH // HEADS) ** 0.5
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        self.weights, self.values = scores.masked_fill(later, -torch.inf).softmax(dim=-1), value
        mixed = (self.weights @ value).transpose(1, 2).flatten(-2)
        x = x + self.out(mixed)
        return x + self.feed(self.between(x))


class Model(nn.Module):
    """Characters in, scores of the next character out."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(characters, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.last = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, characters))

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """(batch, N) to (batch, N, characters)."""
        x = self.token(text) + self.place.weight[: text.shape[-1]]
        for layer in self.layers:
            x = layer(x)
        return self.last(x)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.manual_seed(SEED)
    text = "".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
    alphabet = sorted(set(text))
    coded = torch.tensor([alphabet.index(c) for c in text])
    cut = int(0.95 * len(coded))
    model = Model(len(alphabet))
    began = time.monotonic()
    done = train(model, coded[:cut], options.steps)
    seconds = time.monotonic() - began
    pieces = coded[cut:].unfold(0, CONTEXT + 1, CONTEXT + 1)
    held_out = pieces[:: max(1, len(pieces) // 64)]  # spread over all of it
    with torch.no_grad():
        loss = loss_of(model, held_out).item()
    rows = [row for number, layer in enumerate(model.layers) for row in thresholds(number, layer)]
    facts = {
        "date": datetime.date.today().isoformat(),
        "machine": {"processor": platform.machine(), "cpus": os.cpu_count()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "text": {"characters": len(text), "alphabet": len(alphabet)},
        "training": {"steps": done, "seconds": round(seconds, 1), "seed": SEED},
        "bits_per_character": {"held out": loss / np.log(2), "untrained": float(np.log2(len(alphabet)))},
        "rows": rows,
    }
    write_whole(options.out, json.dumps(facts, indent=1) + "\n")
    write_whole(ROOT / f"docs/generated/{options.out.stem}.md", table(facts))
    print(table(facts))
    return 0


def loss_of(model: Model, text: torch.Tensor) -> torch.Tensor:
    """Mean of -log p of the next character, in nats."""
    return cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())


def train(model: Model, text: torch.Tensor, steps: int) -> int:
    """Adam with a falling rate; stops at Ctrl-C with what it has. Gives the number of steps."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    step = 0
    try:
        for step in range(1, steps + 1):
            starts = torch.randint(len(text) - CONTEXT - 1, (BATCH,)).tolist()
            loss = loss_of(model, torch.stack([text[start : start + CONTEXT + 1] for start in starts]))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            if step % 50 == 0:
                print(f"step {step}: {loss.item() / np.log(2):.2f} bits for a character", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print(f"interrupted after {step - 1} steps", file=sys.stderr)
        return step - 1
    return steps


def thresholds(number: int, layer: Layer) -> list[dict[str, Any]]:
    """One row for each head, of what the layer attended to last."""
    rows = []
    for h in range(HEADS):
        a, v = (x[:, h].detach().double().numpy() for x in (layer.weights, layer.values))
        a = a / a.sum(axis=-1, keepdims=True)  # of float32
        mean, covariance = v.mean(axis=(0, 1)), np.cov(v.reshape(-1, v.shape[-1]), rowvar=False)
        size = np.mean(np.diag(covariance))  # noise in units of the values' own deviation
        tokens = noise.effective_tokens(a)
        level = noise.critical_sigma(a, mean=mean, covariance=covariance)
        # The level at which sigma^2 d S2 is the energy of the outputs that the head really has.
        energy = np.sum((a @ v) ** 2, axis=-1)
        real = np.sqrt(np.sum(energy, axis=0) / np.sum(v.shape[-1] / tokens, axis=0))
        late = slice(CONTEXT // 2, None)  # rows that have something to choose from
        rows.append(
            {
                "layer": number,
                "head": h,
                "n_eff": np.quantile(tokens[:, late], (0.1, 0.5, 0.9)).round(3).tolist(),
                "mean_share": round(float(mean @ mean / (mean @ mean + np.trace(covariance))), 4),
                "sigma": np.quantile(level[:, late] / np.sqrt(size), (0.1, 0.5, 0.9)).round(3).tolist(),
                "sigma_measured": round(float(np.median(real[late]) / np.sqrt(size)), 3),
            }
        )
    return rows


def table(facts: dict[str, Any]) -> str:
    """The rows in Markdown."""
    bits, trained = facts["bits_per_character"], facts["training"]
    lines = [
        "% Written by benchmarks/trained_weights.py.",
        "",
        f"{facts['date']}, {facts['machine']['cpus']} processors ({facts['machine']['processor']}), torch "
        f"{facts['versions']['torch']}: {trained['steps']} steps in {trained['seconds']:.0f} s, "
        f"{bits['held out']:.2f} bits for a character of text not trained on ({bits['untrained']:.2f} before).",
        "",
        "| layer | head | effective tokens: median (10 %, 90 %) | share of the mean in the values "
        "| sigma* in theory: median (10 %, 90 %) | sigma* measured |",
        "| --- " * 6 + "|",
    ]
    for row in facts["rows"]:
        (low, tokens, high), (least, level, most) = row["n_eff"], row["sigma"]
        lines.append(
            f"| {row['layer']} | {row['head']} | {tokens:.1f} ({low:.1f}, {high:.1f}) "
            f"| {100 * row['mean_share']:.1f} % "
            f"| {level:.2f} ({least:.2f}, {most:.2f}) | {row['sigma_measured']:.2f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
