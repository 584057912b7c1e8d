"""Text of strangers: what is shown can neither start a line nor steer a terminal, and has a bound."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.workers.text import LONGEST, escaped, printable

ANY_TEXT = st.text(st.characters() | st.characters(categories=["Cc", "Cf", "Cs", "Zl", "Zp"]))


@given(ANY_TEXT)
def test_every_text_becomes_printable(text: str) -> None:
    """The result is printable and fits into UTF-8; a text that is printable already stays as it is."""
    shown = printable(text)

    assert shown.isprintable()
    assert shown.encode().decode() == shown
    assert shown == text or not text.isprintable()


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\nb", r"a\nb"), ("\x1b[2J", r"\x1b[2J"), ("\u202e", r"\u202e"), ("\udc80", r"\udc80")],
)
def test_characters_that_are_not_printable_are_escaped(text: str, shown: str) -> None:
    """A reader of the escape can tell which character it was."""
    assert printable(text) == shown


@given(ANY_TEXT, st.integers(0, 10_000), st.integers(1, 500))
def test_escaped_text_is_bounded(part: str, times: int, longest: int) -> None:
    """A text takes no more than its bound and an ellipsis, however much the escapes lengthen it."""
    text = part * times
    shown = escaped(text, longest)

    assert len(shown) <= longest + 1
    assert shown.isprintable()
    if text.isprintable() and len(text) <= longest:
        assert shown == text


def test_cut_text_ends_with_an_ellipsis() -> None:
    """The reader sees that a text was cut; one that just fits is whole."""
    assert escaped("x" * LONGEST) == "x" * LONGEST
    assert escaped("x" * (LONGEST + 1)) == "x" * LONGEST + "…"
