"""Programs: what a class says is found when it is made, and a class that cannot work is refused."""

from __future__ import annotations

from typing import Any

import pytest

from prefork import MisuseError
from prefork.rpc import Flavor, Program, procedure, xdr
from prefork.rpc.program import Programs


class Adder(Program):
    """A program with two procedures."""

    number, version = 7, 1

    @procedure(1)
    def add(self, a: xdr.int32, b: xdr.int32) -> xdr.int32:
        """Return the sum."""
        return a + b

    @procedure(2, idempotent=True)
    def negate(self, a: xdr.int32) -> xdr.int32:
        """Return the negative."""
        return -a

    def help(self) -> None:
        """Do nothing that a client could call."""


class Adder2(Adder):
    """The next version, with a method changed and one more procedure."""

    version = 2

    def add(self, a: xdr.int64, b: xdr.int64) -> xdr.int64:
        """Return the sum, as a wider number."""
        return a + b

    @procedure(3)
    def clear(self) -> None:
        """Do nothing."""


def test_procedures_are_found() -> None:
    """Methods that are marked are procedures, and procedure 0 is there by itself."""
    found = {number: one.name for number, one in Adder.procedures.items()}

    assert found == {0: "null", 1: "add", 2: "negate"}
    assert Adder.procedures[1].arguments.least == 8
    assert [Adder.procedures[n].idempotent for n in (0, 1, 2)] == [True, False, True]


def test_next_version_has_the_procedures_of_its_base() -> None:
    """A subclass has its base's procedures; a method that it overrides is one with its own types."""
    found = {number: one.name for number, one in Adder2.procedures.items()}

    assert found == {0: "null", 1: "add", 2: "negate", 3: "clear"}
    assert Adder2.procedures[1].arguments.least == 16
    assert Adder.procedures[1].arguments.least == 8


def test_function_that_is_no_method_is_refused() -> None:
    """A coroutine, a generator and a static method are refused when the class is made, and not at each call."""

    async def later(self: Program) -> int:
        return 1

    def yielding(self: Program) -> Any:
        yield 1

    for function in (later, yielding):
        with pytest.raises(MisuseError, match="write a plain def"):
            type("Wrong", (Program,), {"number": 7, "version": 1, "f": procedure(1)(function)})

    def static(a: int) -> int:
        return a

    for value in (staticmethod(procedure(1)(static)), procedure(1)(staticmethod(static))):  # type: ignore[type-var]
        with pytest.raises(MisuseError, match="a procedure takes self"):
            type("Wrong", (Program,), {"number": 7, "version": 1, "f": value})


def test_versions_of_a_server() -> None:
    """A server knows the lowest and the highest version of each of its programs."""
    programs = Programs([Adder2, Adder])

    assert programs.versions(7) == (1, 2)
    assert programs.versions(8) is None


def add_as(types: dict[str, Any], number: object = 1) -> None:
    """Make a program whose add() has these annotations."""

    def add(self: Program, a: Any) -> Any:
        return a

    add.__annotations__ = types
    type("Wrong", (Program,), {"add": procedure(number)(add)})  # type: ignore[arg-type]


def test_class_that_cannot_work_is_refused() -> None:
    """A class with a procedure that no client can call is refused when it is made, with what to write."""
    for types, number, match in (
        ({"return": None}, 1, r"Wrong\.add\(\): a has no annotation, as in a: xdr\.int32"),
        ({"a": str}, 1, r"the result has no annotation, as in -> None"),
        ({"a": int, "return": None}, 1, r"Wrong\.add\(\): a: int has no width in XDR"),
        ({"a": "Missing", "return": None}, 1, "name 'Missing' is not defined"),
        (
            {"a": "xdr.Length(-1)", "return": None},
            1,
            r"Wrong\.add\(\): Length\(-1\): a whole number",
        ),
        ({"a": str, "return": str}, 0, "procedure 0 is there by itself"),
        ({"a": str, "return": str}, True, "True is no number from 1 to"),
        ({"a": str, "return": str}, 2**32, "4294967296 is no number from 1 to 4294967295"),
    ):
        with pytest.raises(MisuseError, match=match):
            add_as(types, number)


def test_arguments_have_names_and_an_order() -> None:
    """A procedure with arguments that a message does not have is refused."""

    def several(self: Program, *more: xdr.int32) -> None:
        """Take any number of them."""

    def named(self: Program, *, one: xdr.int32) -> None:
        """Take one by its name."""

    for method in (several, named):
        with pytest.raises(MisuseError, match="takes its arguments by position"):
            type("Wrong", (Program,), {"it": procedure(1)(method)})


def test_number_that_is_taken() -> None:
    """Two procedures of one number are refused, with both names."""
    with pytest.raises(MisuseError, match=r"Twice\.plus\(\) has the number 1 of Twice\.add\(\)"):
        type("Twice", (Adder,), {"plus": procedure(1)(lambda self: None)})


def test_programs_that_no_server_takes() -> None:
    """A server refuses what is no program, a program without a number, and two of the same version."""
    other = type("Other", (Adder,), {})
    for programs, match in (
        ([], "needs a program"),
        ([Adder()], "is no class with the base prefork.rpc.Program"),
        ([int], "is no class with the base prefork.rpc.Program"),
        ([Program], "Program has no number, as in number = 1"),
        ([type("Nameless", (Program,), {"number": 1})], "Nameless has no version"),
        ([type("Big", (Program,), {"number": -1, "version": 1})], "-1 is no number from 0"),
        ([type("Open", (Adder,), {"flavors": Flavor.SYS})], "Open.flavors: .*is no collection of"),
        ([type("Shut", (Adder,), {"flavors": ()})], r"Shut\.flavors: \(\) is no collection of"),
        ([type("GSS", (Adder,), {"flavors": (Flavor.GSS,)})], r"GSS\.flavors: .*are supported"),
        ([Adder, other], "Other and Adder are both version 1 of program 7"),
    ):
        with pytest.raises(MisuseError, match=match):
            Programs(programs)  # type: ignore[arg-type]
