"""Reading and showing values: durations, sizes, ratios, masks, names of accounts (pure).

A reader takes a value that a file, a flag or an attribute gave. It turns text into a plain value,
or raises ValueError. A value that is not text is returned as it is, because the type of the setting
checks it afterwards. The text that ``shown_…`` returns reads as the same value.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*(ms|s|m|h|)", re.ASCII)


def same(value: Any) -> Any:
    """Return a value as it is."""
    return value


def seconds(raw: object) -> object:
    """Read ``30``, ``30s``, ``500ms``, ``5m`` or ``2h`` as seconds."""
    if not isinstance(raw, str):
        return raw
    match = _DURATION.fullmatch(raw.strip())
    if match is None:
        raise ValueError(raw)
    return float(match[1]) * _UNITS[match[2]]


def shown_seconds(value: float) -> str:
    """Return seconds as text: in milliseconds below one second."""
    return f"{value * 1000:g}ms" if 0 < value < 1 else f"{value:.10g}s"


_SIZES = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmg]?)(?:i?b)?", re.ASCII | re.IGNORECASE)


def size(raw: object) -> object:
    """Read ``256M``, ``1.5G``, ``64 KiB`` or ``65536`` as bytes; units are powers of 1024."""
    if not isinstance(raw, str):
        return raw
    match = _SIZE.fullmatch(raw.strip())
    if match is None:
        raise ValueError(raw)
    # The digits before the point are no float, which could lose some of them, or be infinite.
    whole, _, fraction = match[1].partition(".")
    unit = _SIZES[match[2].lower()]
    return int(whole) * unit + int(float(f"0.{fraction or 0}") * unit)


def shown_size(value: int) -> str:
    """Return bytes as text, in the largest unit that divides them evenly."""
    for unit in ("G", "M", "K"):
        if value and value % _SIZES[unit.lower()] == 0:
            return f"{value // _SIZES[unit.lower()]}{unit}"
    return str(value)


def ratio(raw: object) -> object:
    """Read ``10%`` or ``0.1`` as a ratio."""
    if not isinstance(raw, str):
        return raw
    text = raw.strip()
    return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)


def shown_ratio(value: float) -> str:
    """Return a ratio as text, in percent."""
    return f"{value * 100:g}%"


def octal(raw: object) -> object:
    """Read ``022`` or ``0o22`` as a file mode mask."""
    if not isinstance(raw, str):
        return raw
    return int(raw.strip().lower().removeprefix("0o"), 8)


def shown_octal(value: int) -> str:
    """Return a mask as text, in octal."""
    return f"{value:03o}"


def account(exists: Callable[[str], object]) -> Callable[[object], object]:
    """Return the reader of a user or a group: a name that this machine knows, or any number.

    exists: looks a name up and raises KeyError where there is none.
    """

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
    """Read a text as a list of the words between its spaces and commas."""
    return raw.replace(",", " ").split() if isinstance(raw, str) else raw


def lower(raw: object) -> object:
    """Read a word in lower case."""
    return raw.lower() if isinstance(raw, str) else raw


_SWITCHES = {"on": True, "off": False, "true": True, "false": False, "yes": True, "no": False}


def switch(raw: object) -> object:
    """Read on or off; ValueError for another word."""
    if isinstance(raw, str):
        try:
            return _SWITCHES[raw.strip().lower()]
        except KeyError:
            raise ValueError(raw) from None
    return raw


def shown_switch(value: object) -> str:
    """Show a switch."""
    return "on" if value else "off"
