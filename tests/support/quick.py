"""Quick tests: those that start no process. They run in seconds, for the loop of an editor.

A test is quick when it is in tests/unit or tests/compat, does not use the fixture ``start``, and is
not marked ``processes`` or ``simulated_hours``. Of a test with several values of a parameter ``seed``
only the first one is quick: the others repeat a simulation with other random numbers.

While a quick test and its fixtures run, an audit hook of the interpreter makes every attempt to start
a process a failure of the test. The hook sees the call itself, so no import can hide it.
"""

from __future__ import annotations

import _posixsubprocess
import sys
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

MARKER: Final = "quick"

_FOLDERS: Final = {"unit", "compat"}

_STARTS: Final = {
    *("os.fork", "os.forkpty", "os.posix_spawn", "os.system", "os.exec"),
    *("subprocess.Popen", "_posixsubprocess.fork_exec"),
}
"""What a quick test may not do, by the interpreter's names of audit events."""


class Quickness:
    """The plug-in: marks the tests that are quick, and holds each to that while it runs."""

    def __init__(self) -> None:
        self._forbids = False

    def pytest_configure(self) -> None:
        """Install the audit hook.

        An interpreter keeps it for good, so it does nothing between quick tests.
        """
        original = _posixsubprocess.fork_exec

        def fork_exec(*arguments: object) -> int:
            sys.audit("_posixsubprocess.fork_exec")
            pid: int = original(*arguments)
            return pid

        _posixsubprocess.fork_exec = fork_exec  # the one way that has no event of its own
        sys.addaudithook(self._refuse)

    @pytest.hookimpl(tryfirst=True)  # before -m chooses
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Mark the quick tests."""
        known: set[object] = set()
        for item in items:
            if is_quick(item) and (simulation := simulation_of(item)) not in known:
                known.add(simulation)
                item.add_marker(MARKER)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, bool, bool]:
        """Allow no process while a quick test and its fixtures run."""
        self._forbids = item.get_closest_marker(MARKER) is not None
        try:
            return (yield)
        finally:
            self._forbids = False

    def _refuse(self, event: str, _arguments: tuple[object, ...]) -> None:
        if self._forbids and event in _STARTS:
            pytest.fail(
                f"a quick test starts no process, but this one calls {event}: "
                "mark it with @pytest.mark.processes"
            )


def is_quick(item: pytest.Item) -> bool:
    """Return whether a test starts no process and simulates no hours, as its place, fixtures and markers say."""
    return (
        item.path.parent.name in _FOLDERS
        and "start" not in getattr(item, "fixturenames", ())
        and item.get_closest_marker("processes") is None
        and item.get_closest_marker("simulated_hours") is None
    )


def simulation_of(item: pytest.Item) -> object:
    """Return what the repetitions of a test with other seeds have in common, and no other test has."""
    call = getattr(item, "callspec", None)
    if call is None or "seed" not in call.params:
        return item.nodeid
    others = {name: repr(value) for name, value in call.params.items() if name != "seed"}
    return item.nodeid.partition("[")[0], *sorted(others.items())
