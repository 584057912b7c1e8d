"""Programs: classes whose procedures clients call (pure).

A class says its number and its version, and its methods say theirs. All that follows from that is found
out when the class is made: which procedures there are, and which types they take and return. So a class
that cannot work is refused before anything is served.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, ClassVar, Final, TypeVar

import msgspec

from prefork.rpc import xdr
from prefork.rpc.codecs import Codec, Fields
from prefork.rpc.message import AcceptStatus, AuthStatus, AuthSys, Call, Flavor
from prefork.workers.errors import MisuseError

_MARK: Final = "_prefork_procedure"
_MOST: Final = 0xFFFFFFFF

_Method = TypeVar("_Method", bound=Callable[..., Any])


class Refusal(Exception):  # noqa: N818 - a procedure's answer
    """A procedure raises this to answer by a status in place of a result; nothing is logged.

    status: an ``AcceptStatus`` such as GARBAGE_ARGS, for arguments that have the right types and wrong
    values, or an ``AuthStatus`` such as TOOWEAK.
    """

    def __init__(self, status: AcceptStatus | AuthStatus, why: str = "") -> None:
        by_hand = status not in (AcceptStatus.SUCCESS, AcceptStatus.PROG_MISMATCH)
        if not (isinstance(status, AuthStatus) or (isinstance(status, AcceptStatus) and by_hand)):
            raise TypeError(f"a procedure cannot refuse a call by {status!r}")
        super().__init__(why or status.name)
        self.status = status


class Mark(msgspec.Struct, frozen=True):
    """What ``@procedure()`` leaves at a method. number: of the procedure. idempotent: may be executed twice."""

    number: int
    idempotent: bool


class Procedure(msgspec.Struct, frozen=True):
    """One procedure of a program: the name of its method, and how its arguments and its result are sent."""

    name: str
    method: Callable[..., Any]
    arguments: Fields
    result: Codec
    idempotent: bool


def procedure(number: int, *, idempotent: bool = False) -> Callable[[_Method], _Method]:
    """Make a method of a program a procedure that clients can call (decorator).

    The annotations of the method are the types of XDR, which ``prefork.rpc.xdr`` lists.

    number: of the procedure, from 1 on; 0 is there by itself. idempotent: to execute a call twice does
    no harm, so that a call that was repeated over UDP need not be recognized.
    """

    def mark(method: _Method) -> _Method:
        setattr(method, _MARK, Mark(number, idempotent))
        return method

    return mark


class Program:
    """The base of all programs. Each call gets an object of its own, in a worker.

    For example::

        class Adder(Program):
            number, version = 0x20000042, 1

            @procedure(1)
            def add(self, a: xdr.int32, b: xdr.int32) -> xdr.int32:
                return a + b

    number, version: which a client names. A subclass with another version has the procedures of its
    base, and may change them. flavors: how clients may say who they are; others get AUTH_TOOWEAK.

    In a procedure there are:

    - ``server``: the server.
    - ``client_address``: of the client, a ``prefork.ClientAddress`` where an edge or AUTH_SYS has said
      who the client is.
    - ``credentials``: the ``AuthSys`` of the call, None for AUTH_NONE. A client can claim anything here.
    - ``call``: the head of the call.
    - ``state``: bytes, at most 4096, that a later call on the same connection finds again, in whichever
      worker it is served. Without effect on UDP, which has no connections.

    An exception is logged, and answered by SYSTEM_ERR; ``Refusal`` answers by another status.
    """

    number: ClassVar[int]
    version: ClassVar[int]
    flavors: ClassVar[Collection[int]] = (Flavor.NONE, Flavor.SYS)

    procedures: ClassVar[Mapping[int, Procedure]] = {}
    """The procedures by number, found when the class is made."""

    server: Any
    client_address: Any
    credentials: AuthSys | None
    call: Call
    state: bytes

    def __init_subclass__(cls, **given: Any) -> None:
        """Find the procedures. MisuseError: the class cannot work as it is; the text says why."""
        super().__init_subclass__(**given)
        cls.procedures = _procedures_of(cls)

    def null(self) -> None:
        """Do nothing, which every program does as its procedure 0."""


NULL: Final = Procedure("null", Program.null, Fields(()), xdr.codec_of(None), idempotent=True)


def _procedures_of(cls: type[Program]) -> dict[int, Procedure]:
    """Return the procedures of a class, 0 included.

    A method that overrides a procedure is one, too, whether it is marked again or not.
    """
    marks: dict[str, Mark] = {}
    for base in reversed(cls.__mro__):
        for name, value in vars(base).items():
            inner = (
                getattr(value, "__func__", None)
                if isinstance(value, staticmethod | classmethod)
                else None
            )
            if inner is not None and (hasattr(value, _MARK) or hasattr(inner, _MARK)):
                raise MisuseError(f"{cls.__name__}.{name}() is no method: a procedure takes self")
            if (mark := getattr(value, _MARK, None)) is not None:
                marks[name] = mark
    found = {0: NULL}
    for name, mark in marks.items():
        where = f"{cls.__name__}.{name}()"
        _refuse_number(where, mark.number, least=1)
        if mark.number in found:
            other = found[mark.number].name
            raise MisuseError(f"{where} has the number {mark.number} of {cls.__name__}.{other}()")
        found[mark.number] = _procedure_of(where, name, getattr(cls, name), mark)
    return found


def _refuse_number(where: str, number: object, *, least: int) -> None:
    if isinstance(number, bool) or not isinstance(number, int) or not least <= number <= _MOST:
        also = "; procedure 0 is there by itself" if number == 0 else ""
        raise MisuseError(f"{where}: {number!r} is no number from {least} to {_MOST}{also}")


def _procedure_of(where: str, name: str, method: Any, mark: Mark) -> Procedure:
    if not inspect.isfunction(method):
        raise MisuseError(f"{where} is no method")
    if (
        inspect.iscoroutinefunction(method)
        or inspect.isgeneratorfunction(method)
        or inspect.isasyncgenfunction(method)
    ):
        raise MisuseError(
            f"{where} returns no result but a coroutine or a generator; write a plain def"
        )
    parameters = list(inspect.signature(method).parameters.values())[1:]
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if any(one.kind not in positional for one in parameters):
        raise MisuseError(f"{where}: a procedure takes its arguments by position, each by a name")
    try:
        hints = typing.get_type_hints(method, include_extras=True)
    except NameError as error:
        raise MisuseError(
            f"{where}: {error}; annotations can name what the module has, not what a function has"
        ) from None
    except TypeError as error:  # of a mark, such as Length(-1)
        raise MisuseError(f"{where}: {error}") from None
    codecs = [_codec(where, one.name, hints) for one in parameters]
    result = _codec(where, "return", hints)
    return Procedure(name, method, Fields(codecs), result, mark.idempotent)


def _codec(where: str, name: str, hints: Mapping[str, Any]) -> Codec:
    what = "the result" if name == "return" else name
    if name not in hints:
        example = "-> None" if name == "return" else f"{name}: xdr.int32"
        raise MisuseError(f"{where}: {what} has no annotation, as in {example}")
    try:
        return xdr.codec_of(hints[name])
    except TypeError as error:
        raise MisuseError(f"{where}: {what}: {error}") from None


class Programs:
    """The programs of one server, by what a call names."""

    def __init__(self, programs: Iterable[type[Program]]) -> None:
        self.all: Final = tuple(programs)
        self.by_version: Final[dict[tuple[int, int], type[Program]]] = {}
        if not self.all:
            raise MisuseError("a server of RPC needs a program, as in RPCServer(address, Adder)")
        for one in self.all:
            _refuse_program(one)
            other = self.by_version.setdefault((one.number, one.version), one)
            if other is not one:
                raise MisuseError(
                    f"{one.__name__} and {other.__name__} are both version {one.version} of program {one.number}"
                )

    def versions(self, number: int) -> tuple[int, int] | None:
        """Return the lowest and the highest version of a program, None where the program is not there."""
        found = [version for program, version in self.by_version if program == number]
        return (min(found), max(found)) if found else None


def _refuse_program(one: Any) -> None:
    if not (isinstance(one, type) and issubclass(one, Program)):
        raise MisuseError(f"{one!r} is no class with the base prefork.rpc.Program")
    for name in ("number", "version"):
        if not hasattr(one, name):
            raise MisuseError(f"{one.__name__} has no {name}, as in {name} = 1")
        _refuse_number(f"{one.__name__}.{name}", getattr(one, name), least=0)
    known = (Flavor.NONE, Flavor.SYS)
    flavors: Any = one.flavors
    if not (isinstance(flavors, Collection) and flavors and all(each in known for each in flavors)):
        raise MisuseError(
            f"{one.__name__}.flavors: {flavors!r} is no collection of flavors that are supported, "
            "such as (Flavor.NONE, Flavor.SYS)"
        )
