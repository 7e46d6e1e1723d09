"""Speech with the exact time of every phone: eSpeak NG through ctypes.

eSpeak NG is GPL-3.0-or-later; it is asked for, never part of this repository. Its samples come with events: type 1
says that a word starts, type 7 that a phone starts.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Event", "Speaker"]

MISSING = (
    "eSpeak NG is needed to make speech: pip install espeakng-loader, or apt-get install libespeak-ng1 espeak-ng-data"
)
_WORD, _PHONE = 1, 7
_RATE, _PITCH, _GAP = 1, 3, 7  # parameters of espeak_SetParameter
_UTF8, _SSML = 1, 0x10


class Event(NamedTuple):
    """A phone (its name) or a word (its number, from 1) that starts at a sample."""

    sample: int
    name: str | int


class _Id(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    ]


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class Speaker:
    """One synthesiser; `rate` is in samples per second."""

    def __init__(self) -> None:
        library, data = _find()
        self._library = library
        # 2: no sound, synchronous; 1: events of phones too
        self.rate: int = library.espeak_Initialize(2, 0, data, 1)
        if self.rate <= 0:
            raise ImportError(MISSING)
        self._samples: list[np.ndarray] = []
        self._events: list[Event] = []
        self._callback = _CALLBACK(self._receive)  # kept: the library holds no reference
        library.espeak_SetSynthCallback(self._callback)

    def say(self, text: str, voice: str, *, rate: int, pitch: int) -> tuple[np.ndarray, list[Event]]:
        """Samples (int16) and events of a text in SSML; rate in words a minute, pitch 0 to 99."""
        self._samples.clear()
        self._events.clear()
        if self._library.espeak_SetVoiceByName(voice.encode()):
            raise ValueError(f"`voice` must be one of eSpeak NG's; got {voice!r}")
        for parameter, value in ((_RATE, rate), (_PITCH, pitch), (_GAP, 0)):
            self._library.espeak_SetParameter(parameter, value, 0)
        given = text.encode()
        size = ctypes.c_size_t(len(given) + 1)
        self._library.espeak_Synth(ctypes.c_char_p(given), size, 0, 1, 0, _UTF8 | _SSML, None, None)
        self._library.espeak_Synchronize()
        return np.concatenate(self._samples or [np.zeros(0, np.int16)]), list(self._events)

    def _receive(self, samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            self._samples.append(np.ctypeslib.as_array(samples, (count,)).copy())
        number = 0
        while events[number].type:
            event = events[number]
            if event.type == _PHONE:
                self._events.append(Event(event.sample, event.id.string.decode("utf-8", "replace")))
            elif event.type == _WORD:
                self._events.append(Event(event.sample, int(event.id.number)))
            number += 1
        return 0


def _find() -> tuple[Any, bytes | None]:
    """The library, and its data where they are not in their usual place."""
    try:
        import espeakng_loader

        return ctypes.CDLL(str(espeakng_loader.get_library_path())), str(espeakng_loader.get_data_path()).encode()
    except ImportError:
        pass
    try:
        return ctypes.CDLL("libespeak-ng.so.1"), None
    except OSError:
        raise ImportError(MISSING) from None
