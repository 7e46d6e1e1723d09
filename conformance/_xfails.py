"""Expected failures that the implementer keeps in a file: a clause, perhaps a dtype, and the reason, on each line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ._clause import CLAUSES
from ._implementation import DTYPES, Implementation

__all__ = ["check_xfails", "read_xfails"]

_LINE = re.compile(r"(?P<key>(?P<label>[^\s\[\]]+)(?:\[(?P<dtype>[^\s\[\]]*)\])?)(?:\s+(?P<reason>.*))?")


def read_xfails(path: str | Path) -> dict[str, str]:
    """The deviations that a file declares: ``IA-S-06[float16]  reason`` on each line, comments after ``#``.

    Parameters
    ----------
    path : path
        Of a text file. Without a dtype in brackets, the clause fails in every dtype.

    Returns
    -------
    dict
        As ``deviations`` of :class:`Implementation`.

    Raises
    ------
    ValueError
        If the file cannot be read, names a clause or a dtype that does not exist, or one twice, or gives no reason
        (IA-X-24). The text says which line.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"`--xfails {path}` cannot be read: {error} [IA-X-24]") from error
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        text = re.sub(r"(^|\s)#.*", "", line).strip()
        if text:
            key, reason = _entry(text, f"line {number} of {path}")
            if key in found or (key != _label(key) and _label(key) in found):
                raise ValueError(f"line {number} of {path} declares {key} a second time [IA-X-24]")
            if any(_label(other) == key for other in found):
                raise ValueError(f"line {number} of {path} declares {key} after one of its dtypes [IA-X-24]")
            found[key] = reason
    return found


def check_xfails(xfails: Mapping[str, str], implementation: Implementation) -> None:
    """Refuse entries that cannot show: in a dtype that the implementation does not take, of a clause not its own.

    Raises
    ------
    ValueError
        IA-X-24.
    """
    for key in xfails:
        dtype = key.partition("[")[2].rstrip("]")
        if dtype and dtype not in implementation.dtypes:
            raise ValueError(f"`--xfails` names {key}, but {implementation.name} does not take {dtype} [IA-X-24]")
        why_not = CLAUSES[_label(key)].unsupported(implementation)
        if why_not:
            raise ValueError(
                f"`--xfails` names {key}, which {implementation.name} is not judged by: {why_not} [IA-X-24]"
            )


def _entry(text: str, where: str) -> tuple[str, str]:
    match = _LINE.fullmatch(text)
    if match is None:
        raise ValueError(f"{where} must be a clause, perhaps a dtype in brackets, and a reason; got {text} [IA-X-24]")
    key, label, dtype, reason = match.group("key", "label", "dtype", "reason")
    if label not in CLAUSES:
        raise ValueError(f"{where} must begin with the label of a clause; got {label} [IA-X-24]")
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"{where} must have one of {', '.join(DTYPES)} in brackets; got {dtype} [IA-X-24]")
    if not reason:
        raise ValueError(f"{where} must say why {key} fails [IA-X-24]")
    return key, reason


def _label(key: str) -> str:
    return key.partition("[")[0]
