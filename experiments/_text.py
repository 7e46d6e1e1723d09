"""English text that comes with the interpreter and with scikit-learn: no download.

Sources and licences: `pydoc_data.topics` of Python (PSF-2.0) and the data set descriptions of scikit-learn
(BSD-3-Clause). The text differs between their versions; the cached data carry a checksum of what was used.
"""

from __future__ import annotations

import pydoc_data.topics
import re
from pathlib import Path

import numpy as np

__all__ = ["phrases", "words"]


def raw() -> str:
    """All of the text."""
    import sklearn

    described = sorted((Path(sklearn.__file__).parent / "datasets/descr").glob("*.rst"))
    parts = [*pydoc_data.topics.topics.values(), *(path.read_text(encoding="utf-8") for path in described)]
    return "\n\n".join(parts)


def words() -> list[str]:
    """Distinct lower-case words of 4 to 9 letters that can be spoken."""
    return sorted({word for word in re.findall(r"\b[a-z]{4,9}\b", raw()) if re.search("[aeiouy]", word)})


def phrases() -> list[str]:
    """Distinct runs of 3 to 5 words, 10 to 32 letters long, from sentences that hold nothing but words."""
    text = re.sub(r"[ \n]+", " ", re.sub(r"\n{2,}", ". ", raw()))
    found: dict[str, None] = {}
    for sentence in re.split(r"(?<=[.!?:])\s+", text):
        if not re.fullmatch(r"[A-Za-z ,.']+", sentence):
            continue
        spoken = [word for word in re.findall(r"[a-z']+", sentence.lower()) if len(word) > 1 or word in "ai"]
        rng, at = np.random.default_rng(len(sentence)), 0
        while at + 3 <= len(spoken):
            size = int(rng.integers(3, 6))
            phrase = " ".join(spoken[at : at + size])
            if 10 <= len(phrase) <= 32 and " " in phrase:
                found[phrase] = None
            at += size
    return list(found)
