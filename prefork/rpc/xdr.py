"""XDR (RFC 4506): annotations as types, and the codecs that read and write their values (pure).

A *codec* is made from an annotation, once, when a class is made. It writes a Python value as bytes and
reads it back:

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

**Bounds.** What a codec reads comes from a stranger. A length is compared with the bound of its type and
with the bytes that are there, before anything is made of it: no array has more elements than the message
has room for. A linked list is read in a loop. A type that contains itself is refused, so that no message
decides how deep the calls of a codec go.

A message that is no value of the type is an XDRError, and so is a value that the type does not have.
Padding may have any content, as in the C libraries. All numbers are big-endian.
"""

from __future__ import annotations

import enum
import inspect
import struct
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from reprlib import repr as brief
from typing import Annotated, Any, Final

import msgspec

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

MOST_LENGTH: Final = 0xFFFFFFFF
"""The longest string, opaque or array that XDR has a length for."""


class XDRError(ValueError):
    """A message is no value of its type, or a value is none of its type. The text says which, for a log."""


class Number(msgspec.Struct, frozen=True):
    """A number of fixed size. name: for error texts. letter: the format of ``struct``."""

    name: str
    letter: str


class Length(msgspec.Struct, frozen=True):
    """The most bytes of a string or opaque, or the most elements of an array."""

    most: int


class Fixed(msgspec.Struct, frozen=True):
    """The number of bytes of an opaque, or of elements of an array, which the message does not repeat."""

    count: int


class Linked(msgspec.Struct, frozen=True):
    """An array that is sent as a linked list. most: elements at most."""

    most: int = MOST_LENGTH


class Switch(msgspec.Struct, frozen=True):
    """The arms of a union. on: the type of the discriminant. arms: the type of each one, None for void.

    default: the type for all other discriminants, None for void; without it they are refused.
    """

    on: Any
    arms: Mapping[int, Any]
    default: Any = ...


class Arm(msgspec.Struct, frozen=True):
    """A value of a union. switch: the discriminant. value: of the type that the discriminant has chosen."""

    switch: int
    value: Any = None


int32 = Annotated[int, Number("int32", "i")]
uint32 = Annotated[int, Number("uint32", "I")]
int64 = Annotated[int, Number("int64", "q")]
uint64 = Annotated[int, Number("uint64", "Q")]
float32 = Annotated[float, Number("float32", "f")]
float64 = Annotated[float, Number("float64", "d")]


class Codec:
    """Reads and writes the values of one type.

    least: bytes of the shortest value. letter: the format of ``struct`` where a value is a plain number,
    "" otherwise.
    """

    least: int = 0
    letter: str = ""

    def write(self, value: Any, out: list[bytes]) -> None:
        """Append the bytes of a value, in one or several parts. XDRError: the type has no such value."""
        raise NotImplementedError

    def read(self, data: bytes, at: int) -> tuple[Any, int]:
        """Return the value that begins at this offset, and the offset behind it. XDRError: there is none."""
        raise NotImplementedError


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


# --- plain values

_LENGTH: Final = struct.Struct(">I")
_PADDING: Final = (b"", b"\0\0\0", b"\0\0", b"\0")
_length_at = _LENGTH.unpack_from


class _Void(Codec):
    """Nothing: the value is None."""

    def write(self, value: Any, out: list[bytes]) -> None:  # noqa: ARG002 - the method of all codecs
        if value is not None:
            raise XDRError(f"void has the value None, not {brief(value)}")

    def read(self, data: bytes, at: int) -> tuple[Any, int]:  # noqa: ARG002 - the method of all codecs
        return None, at


class _Number(Codec):
    def __init__(self, kind: Number) -> None:
        form = struct.Struct(">" + kind.letter)
        self.least = form.size
        self.letter = kind.letter
        self._name = kind.name
        self._pack = form.pack
        self._unpack = form.unpack_from

    def write(self, value: Any, out: list[bytes]) -> None:
        try:
            out.append(self._pack(value))
        except (struct.error, OverflowError, TypeError):
            raise XDRError(f"{brief(value)} is no {self._name}") from None

    def read(self, data: bytes, at: int) -> tuple[Any, int]:
        try:
            (value,) = self._unpack(data, at)
        except struct.error:
            raise XDRError(f"the message ends where a {self._name} is expected") from None
        return value, at + self.least


class _Chosen(Codec):
    """A number that is one of a few. make: of the number; ValueError for another number. name: for error texts."""

    least = 4

    def __init__(self, name: str, make: Callable[[int], Any]) -> None:
        self._name = name
        self._make = make
        self._number = _Number(Number(name, "i"))

    def write(self, value: Any, out: list[bytes]) -> None:
        try:
            number = int(self._make(value))
        except (ValueError, TypeError):
            raise XDRError(f"{brief(value)} is no {self._name}") from None
        self._number.write(number, out)

    def read(self, data: bytes, at: int) -> tuple[Any, int]:
        number, at = self._number.read(data, at)
        try:
            return self._make(number), at
        except ValueError:
            raise XDRError(f"{number} is no {self._name}") from None


def _as_bool(number: int) -> bool:
    if number not in (0, 1):
        raise ValueError
    return bool(number)


class _Opaque(Codec):
    """Bytes with their length before them."""

    least = 4

    def __init__(self, most: int) -> None:
        self._most = most

    def write(self, value: Any, out: list[bytes]) -> None:
        if not isinstance(value, (bytes, bytearray, memoryview)):
            raise XDRError(f"bytes are expected, not {brief(value)}")
        data = bytes(value)
        size = len(data)
        if size > self._most:
            raise XDRError(f"{size} bytes, and at most {self._most} are allowed")
        out += (_LENGTH.pack(size), data, _PADDING[size & 3])

    def read(self, data: bytes, at: int) -> tuple[Any, int]:
        size, at = _length(data, at, self._most, 1)
        end = at + size
        padded = end + (-size & 3)
        if padded > len(data):
            raise XDRError("the message ends within padding")
        return data[at:end], padded


class _Text(_Opaque):
    """A string: opaque bytes that are UTF-8. The length counts bytes."""

    def write(self, value: Any, out: list[bytes]) -> None:
        if not isinstance(value, str):
            raise XDRError(f"a str is expected, not {brief(value)}")
        try:
            super().write(value.encode(), out)
        except UnicodeEncodeError:
            raise XDRError(f"{brief(value)} cannot be written as UTF-8") from None

    def read(self, data: bytes, at: int) -> tuple[Any, int]:
        raw, at = super().read(data, at)
        try:
            return raw.decode(), at
        except UnicodeDecodeError:
            raise XDRError(f"{brief(raw)} is no UTF-8") from None


class _FixedOpaque(Codec):
    def __init__(self, count: int) -> None:
        self._count = count
        self.least = count + (-count & 3)

    def write(self, value: Any, out: list[bytes]) -> None:
        if not isinstance(value, (bytes, bytearray, memoryview)):
            raise XDRError(f"{self._count} bytes are expected, not {brief(value)}")
        data = bytes(value)  # a memoryview may count in larger elements
        if len(data) != self._count:
            raise XDRError(f"{self._count} bytes are expected, not {brief(value)}")
        out += (data, _PADDING[self._count & 3])

    def read(self, data: bytes, at: int) -> tuple[Any, int]:
        end = at + self.least
        if end > len(data):
            raise XDRError(f"the message ends within {self._count} bytes")
        return data[at : at + self._count], end


def _length(data: bytes, at: int, most: int, least: int) -> tuple[int, int]:
    """Return a length and the offset behind it. least: bytes of each element, of which all must be there."""
    try:
        (count,) = _length_at(data, at)
    except struct.error:
        raise XDRError("the message ends where a length is expected") from None
    at += 4
    if count > most:
        raise XDRError(f"a length of {count}, and at most {most} are allowed")
    if count * least > len(data) - at:
        raise XDRError(f"a length of {count}, and only {len(data) - at} bytes follow")
    return count, at


# --- values of values


class Fields:
    """Several values in a row: the members of a struct, or the arguments of a procedure.

    Where all of them are plain numbers, one call of ``struct`` reads or writes all.
    """

    def __init__(self, codecs: Sequence[Codec]) -> None:
        self.least = sum(one.least for one in codecs)
        self._codecs = tuple(codecs)
        letters = [one.letter for one in codecs]
        plain = struct.Struct(">" + "".join(letters)) if all(letters) else None
        self._pack = None if plain is None else plain.pack
        self._unpack = None if plain is None else plain.unpack_from

    def write(self, values: Sequence[Any], out: list[bytes]) -> None:
        """Append the bytes of all values. XDRError: one of them is none of its type."""
        if len(values) != len(self._codecs):
            raise XDRError(f"{len(self._codecs)} values are expected, not {len(values)}")
        if self._pack is not None:
            try:
                out.append(self._pack(*values))
            except (struct.error, OverflowError, TypeError):
                pass  # the loop finds out which one it is
            else:
                return
        for codec, value in zip(self._codecs, values, strict=True):
            codec.write(value, out)

    def read(self, data: bytes, at: int) -> tuple[Sequence[Any], int]:
        """Return all values, and the offset behind them. XDRError: one of them is not there."""
        if self._unpack is not None:
            try:
                return self._unpack(data, at), at + self.least
            except struct.error:
                raise XDRError(
                    f"{self.least} bytes are expected, and {len(data) - at} are there"
                ) from None
        values = []
        for codec in self._codecs:
            value, at = codec.read(data, at)
            values.append(value)
        return values, at

    def read_all(self, data: bytes, at: int) -> Sequence[Any]:
        """Return all values, which are the rest of the data. XDRError: they are not, or not all of it."""
        values, end = self.read(data, at)
        if end != len(data):
            raise XDRError(f"{len(data) - end} bytes follow")
        return values


class _Record(Codec):
    """A struct with named members. kind: the class."""

    def __init__(self, kind: type[msgspec.Struct], codecs: Sequence[Codec]) -> None:
        self._kind = kind
        self._names = kind.__struct_fields__
        self._fields = Fields(codecs)
        self.least = self._fields.least

    def write(self, value: Any, out: list[bytes]) -> None:
        if not isinstance(value, self._kind):
            raise XDRError(f"a {self._kind.__name__} is expected, not {brief(value)}")
        self._fields.write([getattr(value, name) for name in self._names], out)

    def read(self, data: bytes, at: int) -> tuple[Any, int]:
        values, at = self._fields.read(data, at)
        try:
            return self._kind(*values), at
        except Exception as error:  # noqa: BLE001 - of its __post_init__()
            raise XDRError(f"no {self._kind.__name__}: {error}") from None


class _Tuple(Codec):
    def __init__(self, codecs: Sequence[Codec]) -> None:
        self._fields = Fields(codecs)
        self.least = self._fields.least

    def write(self, value: Any, out: list[bytes]) -> None:
        if not isinstance(value, tuple):
            raise XDRError(f"a tuple is expected, not {brief(value)}")
        self._fields.write(value, out)

    def read(self, data: bytes, at: int) -> tuple[Any, int]:
        values, at = self._fields.read(data, at)
        return tuple(values), at


class _Optional(Codec):
    least = 4

    def __init__(self, codec: Codec) -> None:
        self._codec = codec

    def write(self, value: Any, out: list[bytes]) -> None:
        out.append(_LENGTH.pack(value is not None))
        if value is not None:
            self._codec.write(value, out)

    def read(self, data: bytes, at: int) -> tuple[Any, int]:
        is_there, at = _BOOL.read(data, at)
        return self._codec.read(data, at) if is_there else (None, at)


class _Array(Codec):
    """Elements of one type. count: how many there are; None where the message says so, ``most`` at most.

    make: list or tuple, which a value is read as. Both can be written.
    """

    def __init__(
        self, codec: Codec, make: Callable[[Any], Any], *, most: int, count: int | None = None
    ) -> None:
        self._codec = codec
        self._make = make
        self._most = most
        self._count = count
        self.least = 4 if count is None else count * codec.least

    def write(self, value: Any, out: list[bytes]) -> None:
        if not isinstance(value, (list, tuple)):
            raise XDRError(f"a list is expected, not {brief(value)}")
        count = len(value)
        if self._count is None:
            if count > self._most:
                raise XDRError(f"{count} elements, and at most {self._most} are allowed")
            out.append(_LENGTH.pack(count))
        elif count != self._count:
            raise XDRError(f"{self._count} elements are expected, not {count}")
        for one in value:
            self._codec.write(one, out)

    def read(self, data: bytes, at: int) -> tuple[Any, int]:
        codec = self._codec
        count = self._count
        if count is None:
            count, at = _length(data, at, self._most, codec.least)
        elif self.least > len(data) - at:
            raise XDRError(f"the message ends within {count} elements")
        if codec.letter:
            values = struct.unpack_from(f">{count}{codec.letter}", data, at)
            return self._make(values), at + count * codec.least
        elements = []
        for _ in range(count):
            element, at = codec.read(data, at)
            elements.append(element)
        return self._make(elements), at


class _Linked(Codec):
    """Elements of one type, each after a word that says that there is one."""

    least = 4

    def __init__(self, codec: Codec, make: Callable[[Any], Any], most: int) -> None:
        self._codec = codec
        self._make = make
        self._most = most

    def write(self, value: Any, out: list[bytes]) -> None:
        if not isinstance(value, (list, tuple)):
            raise XDRError(f"a list is expected, not {brief(value)}")
        if len(value) > self._most:
            raise XDRError(f"{len(value)} elements, and at most {self._most} are allowed")
        for one in value:
            out.append(_LENGTH.pack(1))
            self._codec.write(one, out)
        out.append(_LENGTH.pack(0))

    def read(self, data: bytes, at: int) -> tuple[Any, int]:
        elements: list[Any] = []
        while True:
            goes_on, at = _BOOL.read(data, at)
            if not goes_on:
                return self._make(elements), at
            if len(elements) == self._most:
                raise XDRError(f"a list of more than {self._most} elements")
            element, at = self._codec.read(data, at)
            elements.append(element)


class _Union(Codec):
    def __init__(self, on: Codec, arms: Mapping[int, Codec], default: Codec | None) -> None:
        self._on = on
        self._arms = dict(arms)
        self._default = default
        every = [*arms.values(), *(() if default is None else (default,))]
        self.least = on.least + min(one.least for one in every)

    def _arm(self, switch: Any) -> Codec:
        found = self._arms.get(switch, self._default)
        if found is None:
            raise XDRError(f"the union has no arm for {brief(switch)}")
        return found

    def write(self, value: Any, out: list[bytes]) -> None:
        if not isinstance(value, Arm):
            raise XDRError(f"an Arm is expected, not {brief(value)}")
        self._on.write(value.switch, out)
        self._arm(value.switch).write(value.value, out)

    def read(self, data: bytes, at: int) -> tuple[Any, int]:
        switch, at = self._on.read(data, at)
        value, at = self._arm(switch).read(data, at)
        return Arm(switch, value), at


_BOOL: Final = _Chosen("bool", _as_bool)

# --- from annotations to codecs

_PLAIN: Final[dict[Any, Codec]] = {
    None: _Void(),
    type(None): _Void(),
    bool: _BOOL,
    str: _Text(MOST_LENGTH),
    bytes: _Opaque(MOST_LENGTH),
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
        return _Tuple([_codec_of(one, outer) for one in inside])
    if origin in (typing.Union, types.UnionType) and type(None) in inside and len(inside) == 2:
        (other,) = (one for one in inside if one is not type(None))
        return _Optional(_codec_of(other, outer))
    return _codec_of_class(annotation, outer)


def _codec_of_class(annotation: Any, outer: tuple[type, ...]) -> Codec:
    if isinstance(annotation, type) and annotation is not Arm:
        if issubclass(annotation, enum.IntEnum):
            return _Chosen(annotation.__name__, annotation)
        if issubclass(annotation, msgspec.Struct):
            return _record_of(annotation, outer)
    why = _WITHOUT_WIDTH.get(annotation) if isinstance(annotation, type) else None
    raise TypeError(why or f"{annotation!r} is no type of XDR")


def _annotated(inner: Any, marks: Sequence[Any], outer: tuple[type, ...]) -> Codec:
    """Return the codec of ``Annotated[inner, *marks]``. Marks that are not of this module have no meaning here."""
    kinds = (Number, Length, Fixed, Linked, Switch)
    mark = next((one for one in marks if isinstance(one, kinds)), None)
    if mark is None:
        return _codec_of(inner, outer)
    if isinstance(mark, Number):
        return _Number(mark)
    if isinstance(mark, Switch) and inner is Arm:
        return _union_of(mark, outer)
    if isinstance(mark, Length) and inner in (str, bytes):
        return (_Text if inner is str else _Opaque)(mark.most)
    if isinstance(mark, Fixed) and inner is bytes:
        return _FixedOpaque(mark.count)
    if isinstance(mark, (Length, Fixed, Linked)) and _is_array(inner):
        return _array_of(inner, mark, outer)
    raise TypeError(f"{type(mark).__name__} has no meaning for {inner!r}")


def _is_array(annotation: Any) -> bool:
    """Return whether an annotation is ``list[T]`` or ``tuple[T, ...]``."""
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    return origin is list or (origin is tuple and inside[1:] == (Ellipsis,))


def _array_of(array: Any, mark: Length | Fixed | Linked, outer: tuple[type, ...]) -> Codec:
    make, element = typing.get_origin(array), typing.get_args(array)[0]
    codec = _codec_of(element, outer)
    if isinstance(mark, Linked):
        return _Linked(codec, make, mark.most)
    if not codec.least:
        raise TypeError(
            f"elements of {element!r} take no bytes, so that no message bounds the list"
        )
    if isinstance(mark, Fixed):
        return _Array(codec, make, most=mark.count, count=mark.count)
    return _Array(codec, make, most=mark.most)


def _union_of(mark: Switch, outer: tuple[type, ...]) -> Codec:
    arms = {switch: _codec_of(one, outer) for switch, one in mark.arms.items()}
    default = None if mark.default is ... else _codec_of(mark.default, outer)
    if not arms and default is None:
        raise TypeError("a union needs an arm, as in Switch(xdr.int32, {0: str})")
    return _Union(_codec_of(mark.on, outer), arms, default)


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
    return _Record(kind, codecs)
