"""Scenes of characters on photographs, and query images of single characters.

==================  =========================  ==================================================
array               shape                      meaning
==================  =========================  ==================================================
scene               (n, 48, 48) uint8          three to five characters
box                 (n, 5, 4)                  x0, y0, x1, y1 as fractions of the side
label               (n, 5)                     class; -1 where there is no fifth or fourth
face                (n, 5)                     typeface
query               (classes, 12, k, 24, 24)   k images of each class and typeface
==================  =========================  ==================================================

A draw splits the characters into seen and unseen classes, and draws all images.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .._cache import Arrays, cached
from .._pictures import FAMILIES, FONTS, background, font, font_path, paste, photographs

__all__ = ["OBJECTS", "QUERY_SIDE", "SIDE", "load"]

SIDE, QUERY_SIDE, OBJECTS = 48, 24, 5
ALIKE = 0.88  # correlation of two characters in one typeface beyond which they are one
CHARACTERS = (
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnqrtuy23456789ΓΔΘΛΞΠΣΦΨΩαβγδεζηθλμξπσφψωБДЖИЛЦЧШЪЫЭЮЯдж"  # noqa: RUF001
    "&@#$%?!{§¶+=<€£¥∞∑√∂∫∅∈∩∪⊂⊕≠≈→↑↔∀∃∇±÷×"  # noqa: RUF001
)


def load(draw: int, *, quick: bool) -> Arrays:
    """The data of a draw; the first time they are made, which takes a minute."""
    name, sizes = (f"osod-quick{draw}", (60, 12, 2, 1)) if quick else (f"osod{draw}", (12000, 700, 16, 5))
    return cached(name, lambda: _make(draw, *sizes))


def _make(draw: int, training: int, testing: int, queries: int, rotations: int) -> Arrays:
    rng = np.random.default_rng([draw, 40])
    characters = _distinct()
    order = rng.permutation(len(characters))
    unseen, seen = np.sort(order[: len(order) // 4]), np.sort(order[len(order) // 4 :])
    turned = [
        [[_render(one, face, rng.uniform(-12.0, 12.0)) for _ in range(rotations)] for face in FONTS]
        for one in characters
    ]
    arrays: Arrays = {"characters": np.asarray(characters), "seen": seen, "unseen": unseen}
    for part, count, pool, test in (
        ("train", training, seen, False),
        ("seen", testing, seen, True),
        ("unseen", testing, unseen, True),
    ):
        scenes = [_scene(rng, turned, pool, photographs(test)) for _ in range(count)]
        for name, rows in zip(("scene", "box", "label", "face"), zip(*scenes, strict=True), strict=True):
            arrays[f"{part}_{name}"] = np.stack(rows)
    for part, count, pool, test in (("train", queries, seen, False), ("test", 6, range(len(characters)), True)):
        shape = (len(characters), len(FONTS), count, QUERY_SIDE, QUERY_SIDE)
        arrays[f"{part}_query"] = np.zeros(shape, np.uint8)
        for number in pool:
            for face in range(len(FONTS)):
                for k in range(count):
                    one = turned[number][face][rng.integers(rotations)]
                    arrays[f"{part}_query"][number, face, k] = _query(rng, one, photographs(test))
    return arrays


def _distinct() -> list[str]:
    """Characters that all typefaces have, without those that look like one before them in some typeface."""
    from matplotlib.ft2font import FT2Font
    from scipy.ndimage import gaussian_filter

    maps = [FT2Font(font_path(name)).get_charmap() for name in FONTS]
    kept: list[str] = []
    looks: list[np.ndarray] = []
    for one in dict.fromkeys(CHARACTERS):
        if not all(ord(one) in found for found in maps):
            continue
        look = np.stack([gaussian_filter(_square(_render(one, face, 0.0)), 1.0).ravel() for face in FONTS])
        look -= look.mean(axis=1, keepdims=True)
        look /= np.linalg.norm(look, axis=1, keepdims=True)
        if all((look * other).sum(axis=1).max() < ALIKE for other in looks):
            kept.append(one)
            looks.append(look)
    return kept


def _render(one: str, face: str, degrees: float) -> Any:
    """A character, large, cut to its box."""
    from PIL import Image, ImageDraw

    image = Image.new("L", (192, 192))
    ImageDraw.Draw(image).text((96, 96), one, fill=255, font=font(face, 64), anchor="mm")
    image = image.rotate(degrees, Image.Resampling.BICUBIC) if degrees else image
    return image.crop(image.getbbox())


def _sized(image: Any, side: float) -> np.ndarray:
    """Ink (0 to 1) whose longer side has so many pixels."""
    from PIL import Image

    ratio = side / max(image.size)
    size = tuple(max(3, round(length * ratio)) for length in image.size)
    return np.asarray(image.resize(size, Image.Resampling.BOX), np.float32) / 255.0


def _square(image: Any, side: int = 20) -> np.ndarray:
    ink, out = _sized(image, side), np.zeros((side, side), np.float32)
    y, x = (side - ink.shape[0]) // 2, (side - ink.shape[1]) // 2
    out[y : y + ink.shape[0], x : x + ink.shape[1]] = ink
    return out


def _scene(rng: np.random.Generator, turned: Any, pool: Any, images: list[Any]) -> tuple[np.ndarray, ...]:
    image = background(rng, images, (SIDE, SIDE), 5.0, (0.3, 0.8))
    for _ in range(rng.integers(0, 4)):
        _stroke(rng, image)
    kinds = rng.choice(pool, size=rng.integers(3, 5), replace=False)
    wanted = [*kinds, *rng.choice(kinds, size=max(0, rng.integers(4, 6) - len(kinds)))]
    boxes = np.zeros((OBJECTS, 4), np.float32)
    labels, faces, count = np.full(OBJECTS, -1), np.full(OBJECTS, -1), 0
    for kind in wanted:
        for _ in range(12):
            face = int(rng.integers(len(FONTS)))
            ink = _sized(turned[kind][face][rng.integers(len(turned[kind][face]))], rng.uniform(11.0, 17.0))
            rows, columns = ink.shape
            x, y = int(rng.integers(0, SIDE - columns + 1)), int(rng.integers(0, SIDE - rows + 1))
            box = np.asarray([x, y, x + columns, y + rows], np.float32)
            apart = (box[:2] > boxes[:count, 2:]) | (box[2:] < boxes[:count, :2])
            if apart.any(axis=1).all():
                paste(rng, image, ink, x, y)
                boxes[count], labels[count], faces[count], count = box, kind, face, count + 1
                break
    return _grey(rng, image), boxes / SIDE, labels, faces


def _stroke(rng: np.random.Generator, image: np.ndarray) -> None:
    """A line or an arc that is no character."""
    from PIL import Image, ImageDraw

    large = Image.new("L", (2 * SIDE, 2 * SIDE))
    pen, place, width = ImageDraw.Draw(large), rng.uniform(0, 2 * SIDE, 4), int(rng.integers(2, 5))
    if rng.random() < 0.5:
        pen.line(list(place), fill=255, width=width)
    else:
        (x, y, start, more), r = place, rng.uniform(6.0, 24.0)
        pen.arc([x - r, y - r, x + r, y + r], 4.0 * start, 4.0 * start + 60.0 + 2.0 * more, fill=255, width=width)
    ink = np.asarray(large.resize((SIDE, SIDE), Image.Resampling.BOX), np.float32) / 255.0
    shade = image.mean() + rng.choice([-1.0, 1.0]) * rng.uniform(0.3, 0.5)
    image[...] = image * (1.0 - ink) + ink * np.clip(shade, -0.1, 1.1)


def _query(rng: np.random.Generator, one: Any, images: list[Any]) -> np.ndarray:
    image = background(rng, images, (QUERY_SIDE, QUERY_SIDE), 5.0, (0.3, 0.8))
    ink = _sized(one, rng.uniform(15.0, 20.0))
    rows, columns = ink.shape
    x, y = ((QUERY_SIDE - size) // 2 + int(rng.integers(-2, 3)) for size in (columns, rows))
    paste(rng, image, ink, int(np.clip(x, 0, QUERY_SIDE - columns)), int(np.clip(y, 0, QUERY_SIDE - rows)))
    return _grey(rng, image)


def _grey(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    return np.uint8(np.clip(image + rng.normal(0.0, 0.03, image.shape), 0.0, 1.0) * 255.0)


def other_family(faces: set[int]) -> list[int]:
    """Typefaces of families that none of these belongs to; all, if there are none."""
    size = len(FONTS) // len(FAMILIES)
    used = {face // size for face in faces}
    return [face for face in range(len(FONTS)) if face // size not in used] or list(range(len(FONTS)))
