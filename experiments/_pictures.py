"""Letters in twelve typefaces, and crops of photographs: what osod and retrieval draw with.

Sources and licences: the fonts that come with matplotlib (DejaVu: Bitstream Vera licence; STIX: its own free
licence), photographs that come with scikit-image and scikit-learn (docs/experiments.md has the terms of each). Nothing
is fetched.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["FAMILIES", "FONTS", "background", "font", "paste", "photographs"]

FAMILIES = {
    "sans": ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique"),
    "serif": ("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic"),
    "mono": ("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique"),
    "stix": ("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic"),
}
FONTS = tuple(name for names in FAMILIES.values() for name in names)
TRAINING = ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg", "motorcycle_left.png", "grass.png")
TRAINING += ("brick.png", "retina.jpg")
TESTING = ("camera.png", "gravel.png", "ihc.png", "hubble_deep_field.jpg", "china.jpg", "flower.jpg")


@functools.cache
def font(name: str, size: int) -> Any:
    """A typeface of matplotlib's at a size in pixels."""
    from PIL import ImageFont

    return ImageFont.truetype(font_path(name), size)


def font_path(name: str) -> str:
    """The file of a typeface."""
    import matplotlib

    return str(Path(matplotlib.get_data_path()) / "fonts/ttf" / f"{name}.ttf")


@functools.cache
def photographs(testing: bool) -> list[Any]:
    """Grey images; those for testing are others than those for training."""
    import skimage
    import sklearn
    from PIL import Image

    folders = (Path(skimage.__file__).parent / "data", Path(sklearn.__file__).parent / "datasets/images")
    found = []
    for name in TESTING if testing else TRAINING:
        paths = [folder / name for folder in folders if (folder / name).exists()]
        if not paths:  # without it the data would be others
            raise FileNotFoundError(f"the photograph {name} is in none of {', '.join(map(str, folders))}")
        found.append(Image.open(paths[0]).convert("L"))
    return found


def background(
    rng: np.random.Generator, images: list[Any], size: tuple[int, int], zoom: float, contrast: tuple[float, float]
) -> np.ndarray:
    """A crop of a photograph as (rows, columns) of grey around a random brightness; zoom is how much it may shrink."""
    from PIL import Image

    rows, columns = size
    image = images[rng.integers(len(images))]
    factor = rng.uniform(1.0, min(zoom, image.size[0] / columns, image.size[1] / rows))
    wide, high = int(columns * factor), int(rows * factor)
    x, y = rng.integers(image.size[0] - wide + 1), rng.integers(image.size[1] - high + 1)
    crop = image.crop((x, y, x + wide, y + high)).resize((columns, rows), Image.Resampling.BOX)
    grey = np.asarray(crop, np.float32) / 255.0
    return rng.uniform(0.25, 0.75) + rng.uniform(*contrast) * (grey - grey.mean())


def paste(rng: np.random.Generator, image: np.ndarray, ink: np.ndarray, x: int, y: int) -> None:
    """Write ink (0 to 1) at a place, lighter or darker than what is there, whichever stays within the range."""
    rows, columns = ink.shape
    region = image[y : y + rows, x : x + columns]
    mean, step = region.mean(), rng.uniform(0.35, 0.6)
    lighter = mean + step <= 1.05 and (mean - step < -0.05 or rng.random() < 0.5)
    region[...] = region * (1.0 - ink) + ink * (mean + step if lighter else mean - step)
