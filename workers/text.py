"""Text that is safe to show on one line of a terminal (pure)."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Final

LONGEST: Final = 200
"""Characters of one escaped text: a client may choose a name, and not the length of our lines."""


def printable(text: str) -> str:
    r"""Return the text with a backslash escape in place of each character that is not printable.

    The result cannot start a new line, steer a terminal or reverse the direction of writing. A
    newline becomes ``\n``, an escape character ``\x1b``, half a surrogate pair ``\ud800``.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def text_of(value: object) -> str:
    """Return ``str(value)``, or words with the name of its type where the value's own method raises."""
    try:
        return str(value)
    except Exception as error:  # noqa: BLE001 - code of the program
        return f"{type(value).__name__} (which cannot be shown: {type(error).__name__})"


def escaped(text: str, longest: int = LONGEST) -> str:
    """Return ``printable(text)``, cut to ``longest`` characters; an ellipsis then marks the cut."""
    shown = printable(text[: longest + 1])
    return shown if len(shown) <= longest else shown[:longest] + "…"


def fact_value(text: str) -> str:
    r"""Return a text as the value in ``key=value``: one word, or in quotes; bounded as ``escaped()`` does.

    A reader gets the text back, up to the cut: each backslash of the result begins an escape, in quotes
    and without them, and the backslashes and quotation marks of the text itself are escaped, too. So a
    text cannot end its quotes and go on as other facts, and ``a\nb`` is never a newline. Examples:
    ``word``, ``"two words"``, ``C:\\temp``, ``""``.
    """
    shown = escaped(text[: LONGEST + 1].replace("\\", "\\\\"))
    if shown and not set(shown) & set(' "='):
        return shown
    quoted = shown.replace('"', '\\"')
    return f'"{quoted}"'


def cut_for_json(text: str, room: int) -> str:
    """Return the text; if JSON needs more than ``room`` characters for it, its beginning and an ellipsis."""
    most = 2 if text.isascii() and text.isprintable() else _MOST_IN_JSON
    if len(text) * most <= room:
        return text
    left = room - _MOST_IN_JSON  # for the ellipsis
    for place, character in enumerate(text):
        left -= 1 if " " <= character <= "~" and character not in '"\\' else _MOST_IN_JSON
        if left < 0:
            return f"{text[:place]}…"
    return text


_MOST_IN_JSON: Final = 12
"""Characters that JSON in ASCII needs at most for one character of a text."""


def nearest(word: str, words: Sequence[str], *, cutoff: float = 0.6) -> str | None:
    """Return the word that a user who wrote ``word`` probably meant, None where none is like it.

    cutoff: how like it has to be, 0 to 1.
    """
    return next(iter(difflib.get_close_matches(word, words, n=1, cutoff=cutoff)), None)
