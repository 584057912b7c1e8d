"""XDR: values come back as they were, and no message makes more of a value than it has bytes for."""

from __future__ import annotations

import enum
import struct
from typing import Annotated, Any, Optional

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.rpc import xdr
from prefork.rpc.xdr import Arm, Fixed, Length, Linked, Switch, XDRError, decode, encode


class Kind(enum.IntEnum):
    """The enum of RFC 4506, section 7."""

    TEXT = 0
    DATA = 1
    EXEC = 2


class File(msgspec.Struct, frozen=True):
    """The file of RFC 4506, section 7."""

    filename: Annotated[str, Length(255)]
    type: Annotated[Arm, Switch(Kind, {0: None, 1: str, 2: str})]
    owner: Annotated[str, Length(32)]
    data: Annotated[bytes, Length(65535)]


class Point(msgspec.Struct, frozen=True):
    """A struct of plain numbers."""

    x: xdr.int32
    y: xdr.float64


FILE = bytes.fromhex(
    "00000009 73696c6c 7970726f 67000000 00000002 00000004 6c697370 00000004 6a6f686e"
    "00000006 28717569 74290000"
)
"""The encoding that RFC 4506, section 7, prints."""

FOUR = st.binary(min_size=4, max_size=4)
TYPES: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (None, st.none()),
    (xdr.int32, st.integers(-(2**31), 2**31 - 1)),
    (xdr.uint32, st.integers(0, 2**32 - 1)),
    (xdr.int64, st.integers(-(2**63), 2**63 - 1)),
    (xdr.uint64, st.integers(0, 2**64 - 1)),
    (xdr.float32, st.floats(width=32, allow_nan=False)),
    (xdr.float64, st.floats(allow_nan=False)),
    (bool, st.booleans()),
    (Kind, st.sampled_from(Kind)),
    (str, st.text()),
    (bytes, st.binary()),
    (Annotated[bytes, Length(3)], st.binary(max_size=3)),
    (Annotated[bytes, Fixed(5)], st.binary(min_size=5, max_size=5)),
    (list[xdr.uint32], st.lists(st.integers(0, 9))),
    (list[str], st.lists(st.text())),
    (tuple[bool, ...], st.lists(st.booleans()).map(tuple)),
    (Annotated[tuple[str, ...], Linked()], st.lists(st.text()).map(tuple)),
    (Annotated[tuple[xdr.int32, ...], Fixed(1)], st.tuples(st.integers(0, 9))),
    (Annotated[list[xdr.int64], Fixed(2)], st.lists(st.integers(0, 9), min_size=2, max_size=2)),
    (Annotated[list[bytes], Linked()], st.lists(st.binary())),
    (Optional[str], st.none() | st.text()),  # noqa: UP045 - both ways to write it
    (bool | None, st.none() | st.booleans()),
    (Point, st.builds(Point, st.integers(0, 9), st.floats(allow_nan=False))),
    (tuple[str, Point], st.tuples(st.text(), st.just(Point(1, 2.0)))),
    (
        Annotated[Arm, Switch(xdr.int32, {1: str}, default=None)],
        st.builds(Arm, st.just(1), st.text()) | st.builds(Arm, st.integers(2, 9), st.none()),
    ),
]


@given(st.data())
def test_values_come_back(data: st.DataObject) -> None:
    """Each value is read back as what was written, from a whole number of words, of which none is missing."""
    annotation, values = data.draw(st.sampled_from(TYPES))
    value = data.draw(values)
    written = encode(annotation, value)

    assert len(written) % 4 == 0
    assert len(written) >= xdr.codec_of(annotation).least
    assert decode(annotation, written) == value
    for short in {len(written) - 1, len(written) - 4} & set(range(len(written))):
        with pytest.raises(XDRError):
            decode(annotation, written[:short])


@given(st.data(), st.binary(max_size=64))
def test_strangers_bytes_are_a_value_or_an_error(data: st.DataObject, message: bytes) -> None:
    """Bytes of any kind are read as a value, which is written with as many bytes, or as an XDRError."""
    annotation, _ = data.draw(st.sampled_from(TYPES))
    try:
        value = decode(annotation, message)
    except XDRError:
        return
    assert len(encode(annotation, value)) == len(message)


def test_example_of_the_rfc() -> None:
    """The file of RFC 4506, section 7, has the bytes that are printed there."""
    file = File("sillyprog", Arm(Kind.EXEC, "lisp"), "john", b"(quit)")

    assert encode(File, file) == FILE
    assert decode(File, FILE) == file


def test_lengths_are_bounded_by_the_message() -> None:
    """A length for which the message has no bytes is refused before anything is made of it."""
    huge = struct.pack(">I", 0xFFFFFFFF) + bytes(64)
    for annotation in (bytes, str, list[xdr.int32], list[str], list[Point], list[bool]):
        with pytest.raises(XDRError, match="4294967295, and only 64 bytes follow"):
            decode(annotation, huge)
    with pytest.raises(XDRError, match="a length of 17, and only 64"):
        decode(list[xdr.int32], struct.pack(">I", 17) + bytes(64))


def test_bounds_of_types_hold_both_ways() -> None:
    """A string, opaque, array or list that is longer than its type allows is neither written nor read."""
    short = {"str": Annotated[str, Length(1)], "bytes": Annotated[bytes, Length(1)]}
    lists = (Annotated[list[xdr.int32], Length(1)], Annotated[list[xdr.int32], Linked(1)])
    wide = (Annotated[list[xdr.int32], Length(9)], Annotated[list[xdr.int32], Linked(9)])
    for narrow, free, value in (
        (short["str"], str, "ab"),
        (short["bytes"], bytes, b"ab"),
        (lists[0], wide[0], [1, 2]),
        (lists[1], wide[1], [1, 2]),
    ):
        with pytest.raises(XDRError, match="at most 1"):
            encode(narrow, value)
        with pytest.raises(XDRError, match=r"at most 1|more than 1"):
            decode(narrow, encode(free, value))


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        *((xdr.int32, one) for one in (2**31, "1", 1.5, None)),
        *((xdr.uint64, one) for one in (-1, 2**64)),
        *((bool, 2), (Kind, 7), (str, b"a"), (bytes, "a"), (str, "\ud800"), (None, 0)),
        *((list[xdr.int32], 1), (list[xdr.int32], ["1"]), (Point, (1, 2.0)), (tuple[str], ["a"])),
        *((Annotated[bytes, Fixed(2)], b"a"), (Annotated[list[bool], Fixed(2)], [True])),
        *((tuple[str, str], ("a",)), (xdr.float64, "1"), (xdr.float32, 1e39)),
        (Annotated[Arm, Switch(xdr.int32, {1: str})], Arm(2, "")),
        (Annotated[Arm, Switch(xdr.int32, {1: str})], "a"),
        *((Annotated[list[bool], Linked()], 1), (Point, Point(1, "2"))),  # type: ignore[arg-type]
    ],
)
def test_no_value_of_the_type(annotation: Any, value: object) -> None:
    """A value that the type does not have is an XDRError, whatever its Python type is."""
    with pytest.raises(XDRError):
        encode(annotation, value)


def test_no_message_of_the_type() -> None:
    """Words that are no bool or enum, text that is no UTF-8, an arm that is not there, and more bytes are refused."""
    for annotation, message, match in (
        (bool, b"\0\0\0\2", "2 is no bool"),
        (Kind, b"\0\0\0\7", "7 is no Kind"),
        (str, b"\0\0\0\1\xff\0\0\0", "no UTF-8"),
        (bool | None, b"\0\0\0\7", "7 is no bool"),
        (Annotated[Arm, Switch(Kind, {0: None})], b"\0\0\0\1", "no arm for"),
        (xdr.int32, bytes(8), "4 bytes follow"),
        (str, b"\0\0\0\1a", "ends within padding"),
    ):
        with pytest.raises(XDRError, match=match):
            decode(annotation, message)


def test_padding_may_be_anything() -> None:
    """The bytes that fill the last word of a string are not looked at, as in the C libraries."""
    assert decode(str, b"\0\0\0\1aXYZ") == "a"


def test_what_a_struct_refuses_is_an_error() -> None:
    """A struct that checks its own values refuses a message by ValueError."""

    class Even(msgspec.Struct):
        number: xdr.int32

        def __post_init__(self) -> None:
            if self.number % 2:
                raise ValueError("odd")

    assert decode(Even, b"\0\0\0\2").number == 2
    with pytest.raises(XDRError, match="no Even: odd"):
        decode(Even, b"\0\0\0\1")


class Node(msgspec.Struct):
    """A struct that contains itself."""

    value: xdr.int32
    next: Node | None = None


class Named(msgspec.Struct, kw_only=True):
    """A struct whose members have no order for a caller."""

    value: xdr.int32


class Wrong(msgspec.Struct):
    """A struct with a member that XDR does not have."""

    value: complex


@pytest.mark.parametrize(
    ("annotation", "match"),
    [
        (int, r"int has no width in XDR: use xdr\.int32"),
        (float, "float has no width"),
        (list, "list needs the type of its elements"),
        (tuple, "tuple needs the types"),
        (Arm, "Arm needs its arms"),
        (complex, "no type of XDR"),
        (dict[str, str], "no type of XDR"),
        (tuple[None, ...], "take no bytes"),
        (str | bytes, "no type of XDR"),
        (list[None], "take no bytes"),
        (Annotated[str, Fixed(3)], "Fixed has no meaning for"),
        (Annotated[int, Length(3)], "Length has no meaning for"),
        (Annotated[Arm, Switch(xdr.int32, {})], "a union needs an arm"),
        (
            Annotated[Arm, Switch(Kind, {7: str})],
            "the arm 7 of a union is never chosen: 7 is no Kind",
        ),
        (Annotated[Arm, Switch(xdr.uint32, {-1: str})], "the arm -1 of a union is never chosen"),
        (
            Annotated[Arm, Switch(str, {"a": str})],
            "chosen by int32, uint32, bool or an enum, not by",
        ),
        (Annotated[Arm, Switch(list[bool], {1: str})], "chosen by int32, uint32, bool or an enum"),
        (Node, "Node.next: Node contains itself"),
        (Named, "by keyword only"),
        (Wrong, "Wrong.value: .*complex.* is no type of XDR"),
    ],
)
def test_no_type_of_xdr(annotation: Any, match: str) -> None:
    """An annotation that XDR has no type for is refused when the codec is made, with the remedy."""
    with pytest.raises(TypeError, match=match):
        xdr.codec_of(annotation)


Name = Annotated[str, Length(255)]


def test_type_has_one_mark() -> None:
    """A second mark, a mark without its values, and a bound that is no number are refused: each would be no bound."""
    for annotation, match in (
        (Annotated[Name, Length(8)], r"Length\(most=255\) and Length\(most=8\)"),
        (Annotated[xdr.int32, Length(8)], "Number.* and Length"),
        (Annotated[list[bool], Linked(), Length(8)], "Linked.* and Length"),
        (Annotated[str, Length], r"Length needs its values, as in Length\(\.\.\.\)"),
        (list[Annotated[Name, Length(8)]], "only one of them can hold"),
    ):
        with pytest.raises(TypeError, match=match):
            xdr.codec_of(annotation)
    for mark in (Length, Fixed, Linked):
        for count in (-1, 2**32, "8", 8.0, True, None):
            with pytest.raises(TypeError, match="a whole number from 0 to 4294967295 is expected"):
                mark(count)


def test_marks_of_others_have_no_meaning() -> None:
    """``Annotated`` with what other libraries put there is the type itself."""
    assert encode(Annotated[xdr.int32, "a comment"], 1) == encode(xdr.int32, 1)
