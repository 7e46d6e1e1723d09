"""Pictures of words with gaps between the letters, and the words.

==================  =====================  ======================================================
array               shape                  meaning
==================  =====================  ======================================================
picture             (n, 16, 144) uint8     a word on a crop of a photograph
columns             (n, 36)                the letter in every fourth pixel; 0 is none
word                (n,)                   which of the training words
words               (n, 10)                letters from 1; 0 pads
==================  =====================  ======================================================

The gap is the misalignment: each letter but the first moves to the right by uniform 0 to `gap` pixels more than its
advance, so that the place of a letter in the word says less and less of its place in the picture.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .._cache import Arrays, cached
from .._pictures import FONTS, background, font, paste, photographs
from .._text import words

__all__ = ["COLUMNS", "GAPS", "LETTERS", "load"]

HEIGHT, WIDTH, LETTERS, COLUMNS, TRAINED_GAP = 16, 144, 10, 36, 6.0
GAPS = (0, 3, 6, 9, 12)  # of the test, in pixels; training has 0 to TRAINED_GAP


def load(draw: int, *, quick: bool) -> Arrays:
    """Training pictures, and 200 test words that no training has, drawn at each gap."""
    name, sizes = (f"retrieval-quick{draw}", (200, 20)) if quick else (f"retrieval{draw}", (4000, 200))
    return cached(name, lambda: _make(draw, *sizes))


def _make(draw: int, training: int, testing: int) -> Arrays:
    rng = np.random.default_rng([draw, 30])
    known = words()
    rng.shuffle(known)
    held, known = known[:testing], known[testing:]
    which = rng.integers(len(known), size=training)
    drawn = [_draw(rng, known[number], rng.uniform(0.0, TRAINED_GAP), photographs(False)) for number in which]
    arrays = {
        "train_picture": np.stack([picture for picture, _ in drawn]),
        "train_columns": np.stack([columns for _, columns in drawn]),
        "train_word": which,
        "train_words": _letters(known),
        "test_words": _letters(held),
    }
    large = [image for image in photographs(True) if min(image.size) > 40]
    for gap in GAPS:
        arrays[f"test_picture{gap}"] = np.stack([_draw(rng, word, float(gap), large)[0] for word in held])
    return arrays


def _letters(known: list[str]) -> np.ndarray:
    codes = [[ord(letter) - 96 for letter in word] for word in known]
    return np.stack([np.pad(code, (0, LETTERS - len(code))) for code in codes]).astype(np.int64)


def _draw(rng: np.random.Generator, word: str, gap: float, images: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    from PIL import Image, ImageDraw

    face = font(FONTS[rng.integers(len(FONTS))], 12)
    advances = np.asarray([face.getlength(letter) for letter in word])
    gaps = rng.uniform(0.0, gap, len(word))
    gaps[0] = 0.0
    room = WIDTH - 4.0 - advances.sum()
    if gaps.sum() > room:
        gaps *= max(0.0, room) / gaps.sum()
    slack = WIDTH - 4.0 - advances.sum() - gaps.sum()
    x = 2.0 + rng.uniform(0.0, max(0.0, min(slack, 4.0 + 3.0 * gap)))
    ink, columns = Image.new("L", (WIDTH, HEIGHT)), np.zeros(COLUMNS, np.int64)
    pen, pixels = ImageDraw.Draw(ink), WIDTH // COLUMNS
    for letter, advance, space in zip(word, advances, gaps, strict=True):
        x += space
        pen.text((x, HEIGHT * 0.72 + rng.uniform(-1.0, 1.0)), letter, fill=255, font=face, anchor="ls")
        first = int(x / pixels + 0.5)
        columns[first : max(first + 1, int((x + advance) / pixels + 0.5))] = ord(letter) - 96
        x += advance
    image = background(rng, images, (HEIGHT, WIDTH), 2.2, (0.2, 0.6))
    paste(rng, image, np.asarray(ink, np.float32) / 255.0, 0, 0)
    noisy = image + rng.normal(0.0, 0.03, image.shape)
    return np.uint8(np.clip(noisy, 0.0, 1.0) * 255.0), columns
