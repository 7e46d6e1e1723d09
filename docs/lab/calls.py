"""What the page's worker calls: one function of text, so that nothing but text passes between Python and the page."""

from __future__ import annotations

import importlib
import json

__all__ = ["FUNCTIONS", "call"]

FUNCTIONS = {"explorer": ("respond",), "alignment": ("respond", "learn"), "cells": ("run",)}


def call(module: str, function: str, argument: str) -> str:
    """Call a function of the laboratory with an object as JSON; its result as JSON.

    What the reader gave and a function refuses comes back as ``{"refused": text}``. Other errors are faults.
    """
    if function not in FUNCTIONS.get(module, ()):
        raise LookupError(f"the laboratory has no function {module}.{function}")
    found = getattr(importlib.import_module(f"{__package__}.{module}"), function)
    try:
        answer = found(json.loads(argument))
    except ValueError as error:
        answer = {"refused": str(error)}
    return json.dumps(answer)
