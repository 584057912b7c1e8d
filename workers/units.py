"""How raw values are read, and shown so that they read the same again: durations, sizes, ratios, masks (pure).

A reader takes what a file, a flag or an attribute gave and returns a plain value, or raises
ValueError; what is no text is left to the checks of the type.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*(ms|s|m|h|)", re.ASCII)


def same(value: Any) -> Any:
    """Take a value as it is."""
    return value


def seconds(raw: object) -> object:
    """Read ``30``, ``30s``, ``500ms``, ``5m`` as seconds; numbers stay as they are."""
    if not isinstance(raw, str):
        return raw
    match = _DURATION.fullmatch(raw.strip())
    if match is None:
        raise ValueError(raw)
    return float(match[1]) * _UNITS[match[2]]


def shown_seconds(value: float) -> str:
    """Render seconds."""
    return f"{value * 1000:g}ms" if 0 < value < 1 else f"{value:.10g}s"


_SIZES = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmg]?)(?:i?b)?", re.ASCII | re.IGNORECASE)


def size(raw: object) -> object:
    """Read ``256M``, ``1.5G``, ``65536`` as bytes; numbers stay as they are."""
    if not isinstance(raw, str):
        return raw
    match = _SIZE.fullmatch(raw.strip())
    if match is None:
        raise ValueError(raw)
    return int(float(match[1]) * _SIZES[match[2].lower()])


def shown_size(value: int) -> str:
    """Render bytes, in the largest unit that fits evenly."""
    for unit in ("G", "M", "K"):
        if value and value % _SIZES[unit.lower()] == 0:
            return f"{value // _SIZES[unit.lower()]}{unit}"
    return str(value)


def ratio(raw: object) -> object:
    """Read ``10%`` and ``0.1`` as a ratio; numbers stay as they are."""
    if not isinstance(raw, str):
        return raw
    text = raw.strip()
    return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)


def shown_ratio(value: float) -> str:
    """Render a ratio as percent."""
    return f"{value * 100:g}%"


def octal(raw: object) -> object:
    """Read text as an octal file mode mask (``022``, ``0o22``); an integer is taken as it is."""
    if not isinstance(raw, str):
        return raw
    return int(raw.strip().lower().removeprefix("0o"), 8)


def shown_octal(value: int) -> str:
    """Render a mask."""
    return f"{value:03o}"


def account(exists: Callable[[str], object]) -> Callable[[object], object]:
    """Read a user or group: a name that this machine knows, or a number that it need not know."""

    def read(raw: object) -> object:
        if not isinstance(raw, str):
            return raw
        if raw.isascii() and raw.isdigit():
            return int(raw)
        try:
            exists(raw)
        except KeyError:
            raise ValueError(raw) from None
        return raw

    return read


def words(raw: object) -> object:
    """Read one text as a list separated by spaces or commas; a list stays as it is."""
    return raw.replace(",", " ").split() if isinstance(raw, str) else raw


def lower(raw: object) -> object:
    """Take a word in whatever case."""
    return raw.lower() if isinstance(raw, str) else raw
