"""XDR (RFC 4506): annotations as types, from which codecs are made (pure).

A *codec* (codecs.py) writes a Python value as bytes and reads it back. One is made from an annotation, once,
when a class is made:

======================================================  =============================================
annotation                                              XDR
======================================================  =============================================
``int32``, ``uint32``, ``int64``, ``uint64``            ``int``, ``unsigned int``, ``hyper``, ``unsigned hyper``
``float32``, ``float64``                                ``float``, ``double``
``bool``, a subclass of ``enum.IntEnum``                ``bool``, ``enum``
``str``, ``bytes``                                      ``string<>`` in UTF-8, ``opaque<>``
``Annotated[bytes, Length(100)]``                       ``opaque<100>``; ``str`` and arrays likewise
``Annotated[bytes, Fixed(16)]``                         ``opaque[16]``; arrays likewise
``list[T]``, ``tuple[T, ...]``                          ``T<>``
``Annotated[list[T], Linked()]``                        a linked list: ``struct {T item; next *next;}``
``T | None``                                            ``T *``
a subclass of ``msgspec.Struct``                        ``struct``
``tuple[A, B]``                                         ``struct`` without a name
``Annotated[Arm, Switch(K, {1: A, 2: None})]``          ``union switch (K) {case 1: A; case 2: void;}``
``None``                                                ``void``
======================================================  =============================================

A type that contains itself is refused, so that no message decides how deep the calls of a codec go.
"""

from __future__ import annotations

import enum
import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import msgspec

from prefork.rpc.codecs import (
    BOOL,
    MOST_LENGTH,
    Arm,
    ArrayCodec,
    ChosenCodec,
    Codec,
    FixedOpaqueCodec,
    LinkedCodec,
    NumberCodec,
    OpaqueCodec,
    OptionalCodec,
    StructCodec,
    TextCodec,
    TupleCodec,
    UnionCodec,
    VoidCodec,
    XDRError,
)

__all__ = [
    "Arm",
    "Fixed",
    "Length",
    "Linked",
    "Switch",
    "XDRError",
    "decode",
    "encode",
    "float32",
    "float64",
    "int32",
    "int64",
    "uint32",
    "uint64",
]


class Number(msgspec.Struct, frozen=True):
    """A number of fixed size. name: for error texts. letter: the format of ``struct``."""

    name: str
    letter: str


class Length(msgspec.Struct, frozen=True):
    """The most bytes of a string or opaque, or the most elements of an array. TypeError: there is no such number."""

    most: int

    def __post_init__(self) -> None:
        _refuse_count("Length", self.most)


class Fixed(msgspec.Struct, frozen=True):
    """The number of bytes of an opaque, or of elements of an array, which the message does not repeat.

    TypeError: there is no such number.
    """

    count: int

    def __post_init__(self) -> None:
        _refuse_count("Fixed", self.count)


class Linked(msgspec.Struct, frozen=True):
    """An array that is sent as a linked list. most: elements at most. TypeError: there is no such number."""

    most: int = MOST_LENGTH

    def __post_init__(self) -> None:
        _refuse_count("Linked", self.most)


def _refuse_count(mark: str, count: object) -> None:
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= MOST_LENGTH:
        raise TypeError(f"{mark}({count!r}): a whole number from 0 to {MOST_LENGTH} is expected")


class Switch(msgspec.Struct, frozen=True):
    """The arms of a union. on: the type of the discriminant. arms: the type of each one, None for void.

    default: the type for all other discriminants, None for void; without it they are refused.
    """

    on: Any
    arms: Mapping[int, Any]
    default: Any = ...


int32 = Annotated[int, Number("int32", "i")]
uint32 = Annotated[int, Number("uint32", "I")]
int64 = Annotated[int, Number("int64", "q")]
uint64 = Annotated[int, Number("uint64", "Q")]
float32 = Annotated[float, Number("float32", "f")]
float64 = Annotated[float, Number("float64", "d")]


def codec_of(annotation: Any) -> Codec:
    """Return the codec of an annotation. TypeError: XDR has no such type; the text says what there is."""
    return _codec_of(annotation, ())


def encode(annotation: Any, value: Any) -> bytes:
    """Return the bytes of one value. XDRError: the type has no such value."""
    out: list[bytes] = []
    codec_of(annotation).write(value, out)
    return b"".join(out)


def decode(annotation: Any, data: bytes) -> Any:
    """Return the value that is all of the data. XDRError: the data are no value of the type, or go on behind it."""
    codec = codec_of(annotation)
    value, end = codec.read(data, 0)
    if end != len(data):
        raise XDRError(f"{len(data) - end} bytes follow")
    return value


# --- from annotations to codecs

_MARKS: Final = (Number, Length, Fixed, Linked, Switch)

_PLAIN: Final[dict[Any, Codec]] = {
    None: VoidCodec(),
    type(None): VoidCodec(),
    bool: BOOL,
    str: TextCodec(MOST_LENGTH),
    bytes: OpaqueCodec(MOST_LENGTH),
}

_WITHOUT_WIDTH: Final = {
    int: "int has no width in XDR: use xdr.int32, uint32, int64 or uint64",
    float: "float has no width in XDR: use xdr.float32 or float64",
    list: "list needs the type of its elements, as in list[xdr.int32]",
    tuple: "tuple needs the types of its elements, as in tuple[xdr.int32, str]",
    Arm: "Arm needs its arms, as in Annotated[Arm, Switch(...)]",
}


def _codec_of(annotation: Any, outer: tuple[type, ...]) -> Codec:
    """Return the codec of an annotation. outer: the structs that it is a part of, to find circles."""
    plain = _PLAIN.get(annotation) if isinstance(annotation, type | None) else None
    if plain is not None:
        return plain
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _annotated(inside[0], inside[1:], outer)
    if _is_array(annotation):
        return _array_of(annotation, Length(MOST_LENGTH), outer)
    if origin is tuple:
        return TupleCodec([_codec_of(one, outer) for one in inside])
    if origin in (typing.Union, types.UnionType) and type(None) in inside and len(inside) == 2:
        (other,) = (one for one in inside if one is not type(None))
        return OptionalCodec(_codec_of(other, outer))
    return _codec_of_class(annotation, outer)


def _codec_of_class(annotation: Any, outer: tuple[type, ...]) -> Codec:
    if isinstance(annotation, type) and annotation is not Arm:
        if issubclass(annotation, enum.IntEnum):
            return ChosenCodec(annotation.__name__, annotation)
        if issubclass(annotation, msgspec.Struct):
            return _record_of(annotation, outer)
    why = _WITHOUT_WIDTH.get(annotation) if isinstance(annotation, type) else None
    raise TypeError(why or f"{annotation!r} is no type of XDR")


def _annotated(inner: Any, marks: Sequence[Any], outer: tuple[type, ...]) -> Codec:
    """Return the codec of ``Annotated[inner, *marks]``."""
    mark = _mark_among(inner, marks)
    if mark is None:
        return _codec_of(inner, outer)
    if isinstance(mark, Number):
        return NumberCodec(mark.name, mark.letter)
    if isinstance(mark, Switch) and inner is Arm:
        return _union_of(mark, outer)
    if isinstance(mark, Length) and inner in (str, bytes):
        return (TextCodec if inner is str else OpaqueCodec)(mark.most)
    if isinstance(mark, Fixed) and inner is bytes:
        return FixedOpaqueCodec(mark.count)
    if isinstance(mark, (Length, Fixed, Linked)) and _is_array(inner):
        return _array_of(inner, mark, outer)
    raise TypeError(f"{type(mark).__name__} has no meaning for {inner!r}")


def _mark_among(inner: Any, marks: Sequence[Any]) -> Any:
    """Return the mark of this module, None for none; marks of other libraries have no meaning here.

    TypeError: there are two marks. ``Annotated[Name, Length(8)]`` has two where ``Name`` itself is
    ``Annotated[str, Length(255)]``, and one of the two bounds would have no effect.
    """
    found = []
    for one in marks:
        if isinstance(one, type) and issubclass(one, _MARKS):
            raise TypeError(f"{one.__name__} needs its values, as in {one.__name__}(...)")
        if isinstance(one, _MARKS):
            found.append(one)
    if len(found) > 1:
        every = " and ".join(map(repr, found))
        raise TypeError(f"{inner!r} is marked by {every}, and only one of them can hold; write one")
    return found[0] if found else None


def _is_array(annotation: Any) -> bool:
    """Return whether an annotation is ``list[T]`` or ``tuple[T, ...]``."""
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    return origin is list or (origin is tuple and inside[1:] == (Ellipsis,))


def _array_of(array: Any, mark: Length | Fixed | Linked, outer: tuple[type, ...]) -> Codec:
    make, element = typing.get_origin(array), typing.get_args(array)[0]
    codec = _codec_of(element, outer)
    if isinstance(mark, Linked):
        return LinkedCodec(codec, make, mark.most)
    if not codec.least:
        raise TypeError(
            f"elements of {element!r} take no bytes, so that no message bounds the list"
        )
    if isinstance(mark, Fixed):
        return ArrayCodec(codec, make, most=mark.count, count=mark.count)
    return ArrayCodec(codec, make, most=mark.most)


def _union_of(mark: Switch, outer: tuple[type, ...]) -> Codec:
    arms = {switch: _codec_of(one, outer) for switch, one in mark.arms.items()}
    default = None if mark.default is ... else _codec_of(mark.default, outer)
    if not arms and default is None:
        raise TypeError("a union needs an arm, as in Switch(xdr.int32, {0: str})")
    return UnionCodec(_discriminant_of(mark, outer), arms, default)


def _discriminant_of(mark: Switch, outer: tuple[type, ...]) -> Codec:
    """Return the codec of what a union is chosen by. TypeError: XDR chooses by no such type, or an arm is never chosen."""
    codec = _codec_of(mark.on, outer)
    if not (isinstance(codec, ChosenCodec) or codec.letter in ("i", "I")):
        raise TypeError(f"a union is chosen by int32, uint32, bool or an enum, not by {mark.on!r}")
    for switch in mark.arms:
        try:
            codec.write(switch, [])
        except XDRError as error:
            raise TypeError(f"the arm {switch!r} of a union is never chosen: {error}") from None
    return codec


def _record_of(kind: type[msgspec.Struct], outer: tuple[type, ...]) -> Codec:
    name = kind.__name__
    if kind in outer:
        raise TypeError(
            f"{name} contains itself, so that a message could nest without end; a linked list is "
            "Annotated[list[...], xdr.Linked()]"
        )
    parameters = inspect.signature(kind).parameters.values()
    if any(one.kind is one.KEYWORD_ONLY for one in parameters):
        raise TypeError(f"{name} takes its members by keyword only; XDR has them in their order")
    hints = typing.get_type_hints(kind, include_extras=True)
    codecs = []
    for member in kind.__struct_fields__:
        try:
            codecs.append(_codec_of(hints[member], (*outer, kind)))
        except TypeError as error:
            raise TypeError(f"{name}.{member}: {error}") from None
    return StructCodec(kind, codecs)
