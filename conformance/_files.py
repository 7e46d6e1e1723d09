"""Files that are written whole or not at all, and text that can be written anywhere."""

from __future__ import annotations

import contextlib
import os
import secrets
import unicodedata
from collections.abc import Mapping
from pathlib import Path

__all__ = ["check_paths", "clean", "write_whole"]

# Characters that turn text around on the screen can make a report say what it does not.
_TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_UNPRINTABLE = frozenset({"Cc", "Cs", "Cn", "Co", "Zl", "Zp"})


def clean(text: str) -> str:
    r"""Text with everything that is no plain character written as an escape.

    An implementation under test may raise whatever it likes: codes that move a terminal's cursor, halves of surrogate
    pairs that no file can hold, characters that XML forbids.

    Examples
    --------
    >>> clean("red \x1b[31m, half \ud800")
    'red \\x1b[31m, half \\ud800'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape").decode("ascii")
        if char in _TURNING or (char not in "\n\t" and unicodedata.category(char) in _UNPRINTABLE)
        else char
        for char in text
    )


def write_whole(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 to a file beside it first, so that an interrupted run leaves the old file or the new one.

    Folders on the way are made. Where the path is a device or a pipe there is nothing to keep whole, and renaming
    would put a file in its place: that is written to directly.
    """
    target = Path(path)
    if str(target).startswith(("/dev/", "/proc/")) or (target.exists() and not target.is_file()):
        target.write_text(text, encoding="utf-8")
        return
    target = target.resolve()  # of a link, what it leads to
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name[:100]}.{secrets.token_hex(8)}")
    try:
        with open(beside, "x", encoding="utf-8", newline="\n") as file:
            file.write(text)
        if target.exists():
            beside.chmod(target.stat().st_mode & 0o777)
        beside.replace(target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            beside.unlink()


def check_paths(paths: Mapping[str, str | None]) -> None:
    """Refuse reports that could not be written, before minutes go into what they would hold (IA-X-21).

    Parameters
    ----------
    paths : mapping of option to path
        None for an option that was not given.

    Raises
    ------
    ValueError
        If a path leads to a folder, to a place that cannot be written, or to the file of another report.

    Examples
    --------
    >>> check_paths({"--json": "same.out", "--html": "same.out"})
    Traceback (most recent call last):
    ValueError: `--html` must name a file of its own; got same.out, which `--json` names too [IA-X-21]
    """
    taken: dict[Path, str] = {}
    for option, given in paths.items():
        if given is None:
            continue
        target = Path(given).resolve()
        if target in taken and not str(target).startswith(("/dev/", "/proc/")):
            other = taken[target]
            raise ValueError(
                f"`{option}` must name a file of its own; got {clean(given)}, which `{other}` names too [IA-X-21]"
            )
        taken[target] = option
        why_not = _why_not(target)
        if why_not:
            raise ValueError(
                f"`{option}` must name a file that can be written; got {clean(given)}: {why_not} [IA-X-21]"
            )


def _why_not(target: Path) -> str | None:
    if target.is_dir():
        return "it is a folder"
    if target.exists():
        return None if os.access(target, os.W_OK) else "it may not be written"
    folder = next(parent for parent in target.parents if parent.exists())
    if not folder.is_dir():
        return f"{clean(folder.name)} is not a folder"
    return None if os.access(folder, os.W_OK | os.X_OK) else "its folder may not be written"
