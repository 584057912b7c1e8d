"""The codecs of XDR (RFC 4506): each reads and writes the values of one type (pure).

``xdr.py`` makes a codec from an annotation, once, when a class is made.

**Bounds.** What a codec reads comes from a stranger. A length is compared with the bound of its type and
with the bytes that are there, before anything is made of it: no array has more elements than the message
has room for. A linked list is read in a loop.

Bytes that are not a value of the type are an XDRError, and so is a Python value that the type does not have.
Padding may have any content, as in the C libraries. All numbers are big-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from reprlib import repr as brief
from typing import Any, Final

import msgspec

MOST_LENGTH: Final = 0xFFFFFFFF
"""The longest string, opaque or array that XDR has a length for."""


class XDRError(ValueError):
    """Bytes cannot be read as their type, or a value cannot be written as its type. The text says which, for a log."""


class Arm(msgspec.Struct, frozen=True):
    """A value of a union. switch: the discriminant. value: of the type that the discriminant has chosen."""

    switch: int
    value: Any = None


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
        """Return the value that begins at this offset, and the offset behind it. XDRError: the bytes are not such a value."""
        raise NotImplementedError


# --- plain values

_LENGTH: Final = struct.Struct(">I")
_PADDING: Final = (b"", b"\0\0\0", b"\0\0", b"\0")
_length_at = _LENGTH.unpack_from


class VoidCodec(Codec):
    """Nothing: the value is None."""

    def write(self, value: Any, out: list[bytes]) -> None:  # noqa: ARG002 - the method of all codecs
        if value is not None:
            raise XDRError(f"void has the value None, not {brief(value)}")

    def read(self, data: bytes, at: int) -> tuple[Any, int]:  # noqa: ARG002 - the method of all codecs
        return None, at


class NumberCodec(Codec):
    """A number of a fixed size. name: for error texts. letter: the format of ``struct``."""

    def __init__(self, name: str, letter: str) -> None:
        form = struct.Struct(">" + letter)
        self.least = form.size
        self.letter = letter
        self._name = name
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


class ChosenCodec(Codec):
    """A number that is one of a few. make: of the number; ValueError for another number. name: for error texts."""

    least = 4

    def __init__(self, name: str, make: Callable[[int], Any]) -> None:
        self._name = name
        self._make = make
        self._number = NumberCodec(name, "i")

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


class OpaqueCodec(Codec):
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


class TextCodec(OpaqueCodec):
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


class FixedOpaqueCodec(Codec):
    """Bytes without their length, which the type says."""

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
        """Append the bytes of all values. XDRError: a value is not of its type."""
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
        """Return all values, and the offset behind them. XDRError: the bytes are not such values."""
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
        """Return all values, which are the rest of the data. XDRError: the data are not such values, or go on behind them."""
        values, end = self.read(data, at)
        if end != len(data):
            raise XDRError(f"{len(data) - end} bytes follow")
        return values


class StructCodec(Codec):
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


class TupleCodec(Codec):
    """A struct without a name: a tuple."""

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


class OptionalCodec(Codec):
    """A value that may be missing: a word says whether it follows. A missing value is None."""

    least = 4

    def __init__(self, codec: Codec) -> None:
        self._codec = codec

    def write(self, value: Any, out: list[bytes]) -> None:
        out.append(_LENGTH.pack(value is not None))
        if value is not None:
            self._codec.write(value, out)

    def read(self, data: bytes, at: int) -> tuple[Any, int]:
        is_there, at = BOOL.read(data, at)
        return self._codec.read(data, at) if is_there else (None, at)


class ArrayCodec(Codec):
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


class LinkedCodec(Codec):
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
            goes_on, at = BOOL.read(data, at)
            if not goes_on:
                return self._make(elements), at
            if len(elements) == self._most:
                raise XDRError(f"a list of more than {self._most} elements")
            element, at = self._codec.read(data, at)
            elements.append(element)


class UnionCodec(Codec):
    """A value whose type a number before it chooses, the discriminant. default: the type for all others."""

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


BOOL: Final = ChosenCodec("bool", _as_bool)
