"""Utterances with the exact onset of every phone, spoken by eSpeak NG.

Words are spoken at random rates (60 to 170 % of 150 to 230 words a minute), with random breaks, by eight voices; three
more are kept for the test: a Klatt synthesiser, a high voice, another accent. Of the Klatt voices it is klatt3, which
sounds alike in eSpeak NG 1.51 and 1.52 and does not clip; 1.52 has lost the voicing of klatt and klatt2. Training text
is phrases and then random strings of their words; test phrases occur in no training.

==================  =====================  ======================================================
array               shape                  meaning
==================  =====================  ======================================================
mel                 (n, 256, 40) uint8     log mel energies, frames of 10 ms, steps of 0.25
phones              (n, 32)                numbers from 1; 0 pads
onsets, ends        (n, 32)                in frames of 20 ms
count               (n,)                   phones
length              (n,)                   in frames of 20 ms
==================  =====================  ======================================================
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from .._cache import Arrays, cached
from .._text import phrases

__all__ = ["FRAMES", "MELS", "PARTS", "PHONES", "load"]

HOP, WINDOW, FFT, MELS, FRAMES, PHONES = 0.010, 0.025, 1024, 40, 256, 32
FLOOR, STEP = -14.0, 0.25  # of the stored logarithms
KNOWN = ("en-us", "en-us+f2", "en-us+m3", "en-us+f5")
KNOWN += ("en-gb-scotland", "en-gb-scotland+m1", "en-gb-x-rp", "en-gb-x-rp+f4")
UNKNOWN = ("en-us+klatt3", "en-us+steph", "en-029+m7")
PARTS = ("train", "test", "voices")


def load(draw: int, *, quick: bool) -> Arrays:
    """The data of a draw; the first time they are made, which takes a minute or two."""
    name, sizes = (f"speech-quick{draw}", (150, 30)) if quick else (f"speech{draw}", (8000, 300))
    arrays = cached(name, lambda: _make(draw, *sizes))
    for part in PARTS:
        rows = arrays.pop(f"{part}_frames")
        starts = np.concatenate([[0], np.cumsum(arrays[f"{part}_used"])])
        mel = np.zeros((len(starts) - 1, FRAMES, MELS), np.uint8)
        for number, (start, stop) in enumerate(itertools.pairwise(starts)):
            mel[number, : stop - start] = rows[start:stop]
        arrays[f"{part}_mel"] = mel
    return arrays


def _make(draw: int, train: int, test: int) -> Arrays:
    from ._espeak import Speaker

    rng, speaker = np.random.default_rng([draw, 20]), Speaker()
    texts = phrases()
    rng.shuffle(texts)
    held, kept = texts[:test], texts[test:]
    known = sorted({word for text in kept for word in text.split()})
    while len(kept) < 2 * train:
        text = " ".join(rng.choice(known, size=rng.integers(2, 6)))
        if 10 <= len(text) <= 32:
            kept.append(text)
    bank, names, arrays = _filters(speaker.rate), {}, {}
    for part, given, voices, most in (
        ("train", kept, KNOWN, train),
        ("test", held, KNOWN, test),
        ("voices", held, UNKNOWN, test),
    ):
        spoken: list[Any] = []
        for text in given:
            if len(spoken) == most:
                break
            utterance = _utter(speaker, rng, text, str(rng.choice(voices)))
            if utterance is None:
                continue
            samples, phones, onsets, ends = utterance
            if part == "train":
                for phone in phones:
                    names.setdefault(phone, len(names) + 1)
            elif not set(phones) <= names.keys():
                continue
            numbers = [names[phone] for phone in phones]
            spoken.append((_log_mel(samples, speaker.rate, bank), numbers, onsets, ends, len(samples) / speaker.rate))
        arrays.update({f"{part}_{name}": rows for name, rows in _as_arrays(spoken).items()})
    return {**arrays, "vocabulary": np.asarray(list(names))}


def _utter(speaker: Any, rng: np.random.Generator, text: str, voice: str) -> Any:
    """Samples, phones, onsets and ends in seconds; None if it is too long or too short."""
    parts = []
    for number, word in enumerate(text.split()):
        if number and rng.random() < 0.3:
            parts.append(f'<break time="{int(rng.uniform(50, 350))}ms"/>')
        parts.append(f'<prosody rate="{int(rng.uniform(60, 170))}%">{word}</prosody>')
    rate, pitch = int(rng.uniform(150, 230)), int(rng.uniform(25, 75))
    samples, events = speaker.say(f"<speak>{' '.join(parts)}</speak>", voice, rate=rate, pitch=pitch)
    starts = [event for event in events if isinstance(event.name, str)]
    ends = [event.sample for event in starts[1:]] + [len(samples)]
    phones = [
        (event.name, event.sample, end)
        for event, end in zip(starts, ends, strict=True)
        if event.name not in ("", ";") and not str(event.name).startswith("_")
    ]
    lead, tail = rng.uniform(0.0, 0.3), rng.uniform(0.05, 0.3)
    if not 6 <= len(phones) <= PHONES:
        return None
    names, onsets, ends = zip(*phones, strict=True)
    silence = np.zeros(int(lead * speaker.rate), np.int16)
    samples = np.concatenate([silence, samples[: ends[-1] + int(tail * speaker.rate)]])
    if len(samples) > FRAMES * HOP * speaker.rate:
        return None
    onsets, ends = ((np.asarray(times) + len(silence)) / speaker.rate for times in (onsets, ends))
    return samples, names, onsets, ends


def _as_arrays(spoken: list[Any]) -> Arrays:
    frames, numbers, onsets, ends, seconds = zip(*spoken, strict=True)
    padded = [np.stack([np.pad(row, (0, PHONES - len(row))) for row in rows]) for rows in (numbers, onsets, ends)]
    return {
        "frames": np.concatenate(frames),
        "used": np.asarray([len(rows) for rows in frames], np.int32),
        "phones": padded[0].astype(np.int32),
        "onsets": (padded[1] / (2 * HOP)).astype(np.float32),
        "ends": (padded[2] / (2 * HOP)).astype(np.float32),
        "count": np.asarray([len(row) for row in numbers], np.int32),
        "length": (np.asarray(seconds) / (2 * HOP)).astype(np.float32),
    }


def _filters(rate: int) -> np.ndarray:
    """Triangular filters (bins, MELS) from 60 to 8000 Hz, equally wide on the mel scale."""

    def mel(hertz: Any) -> Any:
        return 2595.0 * np.log10(1.0 + hertz / 700.0)

    edges = 700.0 * (10.0 ** (np.linspace(mel(60.0), mel(8000.0), MELS + 2) / 2595.0) - 1.0)
    bins = np.fft.rfftfreq(FFT, 1.0 / rate)[:, None]
    rise = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rise, fall))


def _log_mel(samples: np.ndarray, rate: int, bank: np.ndarray) -> np.ndarray:
    """Frames (T, MELS) in steps of STEP; frame t is centred on (t + 1/2) HOP."""
    width = int(WINDOW * rate)
    count = min(FRAMES, int(len(samples) / rate / HOP))
    wave = np.pad(samples / 32768.0, (width // 2, width))
    starts = ((np.arange(count) + 0.5) * HOP * rate).astype(int)
    windows = wave[starts[:, None] + np.arange(width)] * np.hanning(width)
    power = np.abs(np.fft.rfft(windows, FFT)) ** 2
    logs = np.log(power @ bank + 1e-6)
    return np.clip(np.round((logs - FLOOR) / STEP), 0, 255).astype(np.uint8)
