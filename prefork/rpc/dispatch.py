"""From the bytes of a call to what is executed, or to the reply that says why nothing is executed (pure)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from prefork.rpc import xdr
from prefork.rpc.message import (
    AcceptStatus,
    AuthStatus,
    Call,
    Declined,
    accepted,
    auth_error,
    mismatch,
    read_call,
)
from prefork.rpc.program import Procedure, Program, Programs, Refusal


class Task(msgspec.Struct, frozen=True, gc=False):
    """A call that can be executed. program: the class. procedure: of that class. arguments: decoded."""

    call: Call
    program: type[Program]
    procedure: Procedure
    arguments: Sequence[Any]

    @property
    def name(self) -> str:
        """The procedure as errors name it, such as ``Adder.add()``."""
        return _name_of(self.program, self.procedure)


class GarbageArguments(Declined):
    """The arguments are not those that the procedure takes."""


def task_of(data: bytes, programs: Programs) -> Task:
    """Return what a message asks for. NoCall: the message gets no reply. Declined: it gets the reply of the exception."""
    call = read_call(data)
    program = programs.by_version.get((call.program, call.version))
    if program is None:
        raise _no_program(call, programs)
    if call.flavor not in program.flavors:
        reply = auth_error(call.xid, AuthStatus.TOOWEAK)
        raise Declined(reply, f"authentication flavor {call.flavor} is too weak")
    procedure = program.procedures.get(call.procedure)
    if procedure is None:
        reply = accepted(call.xid, AcceptStatus.PROC_UNAVAIL)
        raise Declined(reply, f"no procedure {call.procedure}")
    try:
        arguments = procedure.arguments.read_all(data, call.begin)
    except xdr.XDRError as error:
        reply = accepted(call.xid, AcceptStatus.GARBAGE_ARGS)
        name = _name_of(program, procedure)
        raise GarbageArguments(reply, f"{name}: {error}") from None
    return Task(call, program, procedure, arguments)


def _name_of(program: type[Program], procedure: Procedure) -> str:
    return f"{program.__name__}.{procedure.name}()"


def _no_program(call: Call, programs: Programs) -> Declined:
    versions = programs.versions(call.program)
    if versions is None:
        reply = accepted(call.xid, AcceptStatus.PROG_UNAVAIL)
        return Declined(reply, f"no program {call.program}")
    return Declined(mismatch(call.xid, *versions), f"no version {call.version}")


def reply_with(task: Task, result: Any) -> bytes:
    """Return the reply with a result. XDRError: the result is not of the procedure's type."""
    out = [accepted(task.call.xid)]
    try:
        task.procedure.result.write(result, out)
    except xdr.XDRError as error:
        raise xdr.XDRError(f"the result of {task.name}: {error}") from None
    return b"".join(out)


def refusal_of(task: Task, refusal: Refusal) -> bytes:
    """Return the reply that a procedure has chosen in place of a result."""
    if isinstance(refusal.status, AuthStatus):
        return auth_error(task.call.xid, refusal.status)
    return accepted(task.call.xid, refusal.status)
