"""Fixtures for all tests: programs under test, and the proof that a test has left nothing behind."""

from __future__ import annotations

import gc
import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings as properties

from tests.support.leftovers import socket_files, wait_for_descriptors, wait_for_no_children
from tests.support.processes import become_subreaper, fds_of
from tests.support.quick import MARKER, Quickness
from tests.support.reloadable import Reloadable
from tests.support.server import Program

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from pathlib import Path

pytest_plugins = ["prefork.testing.plugin"]

_PROGRAMS = pytest.StashKey[list[Program]]()

EXAMPLES = 100
"""Examples that hypothesis invents for each of its tests."""

QUICK_EXAMPLES = 10
"""The same where only quick tests were asked for: they are run often, and see others each time."""


def pytest_configure(config: pytest.Config) -> None:
    """Adopt every orphan of the tests, so that the leftovers of a test can be seen."""
    config.addinivalue_line(
        "markers", "leaves_socket: the test means to leave a socket file behind"
    )
    config.addinivalue_line(
        "markers", "once: the interpreter makes no difference to it; the CI runs it on one of them"
    )
    config.addinivalue_line("markers", "processes: the test starts processes without ``start``")
    config.addinivalue_line(
        "markers",
        "simulated_hours: the test simulates hours of a pool, which takes too long to be quick",
    )
    config.addinivalue_line("markers", f"{MARKER}: the test starts no process (computed)")
    config.pluginmanager.register(Quickness())
    _set_up_hypothesis(QUICK_EXAMPLES if config.option.markexpr == MARKER else EXAMPLES)
    become_subreaper()
    # The time limit of a CI sends TERM: end in order then, so that no program under test is left.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # A shell has its background jobs ignore these, and programs under test would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    # nohup does the same for HUP, and a master leaves a signal alone that it was started to ignore.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _set_up_hypothesis(max_examples: int) -> None:
    """Have all tests of properties look at this many examples, however long a loaded machine takes for one."""
    properties.register_profile("prefork", max_examples=max_examples, deadline=None)
    properties.load_profile("prefork")


def pytest_collection_finish() -> None:
    """Keep what collecting has made out of later garbage collections: a sixth of the time of quick tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a child process, a descriptor or a socket file, naming them."""
    before = fds_of()
    yield
    left = [f"child process {child}" for child in wait_for_no_children()]
    left += [f"descriptor {change}" for change in wait_for_descriptors(before)]
    folder = request.node.funcargs.get("tmp_path")
    if folder is not None and request.node.get_closest_marker("leaves_socket") is None:
        left += [f"socket file {path}" for path in socket_files(folder)]
    if left:
        pytest.fail("the test has left behind: " + "; ".join(left), pytrace=False)


@pytest.fixture
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """``start(source, **options)`` starts a ``Program``; all of them are ended after the test.

    A process that a program leaves behind makes the test fail.
    """
    programs = request.node.stash.setdefault(_PROGRAMS, [])
    ends = ExitStack()

    def start_program(source: str | Path | None, **options: object) -> Program:
        name = "program" if not programs else f"program{len(programs) + 1}"
        programs.append(Program(source, tmp_path, **{"name": name, **options}))
        ends.callback(programs[-1].end)
        return programs[-1]

    with ends:
        yield start_program


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the programs of a failed test have logged."""
    report = yield
    if report.failed:
        for program in item.stash.get(_PROGRAMS, []):
            report.sections.append((f"standard error of {program.name}", _shortened(program.log)))
    return report


def _shortened(log: str, lines: int = 60) -> str:
    """Return the first and the last lines of a long log."""
    all_lines = log.splitlines()
    if len(all_lines) <= 2 * lines:
        return log
    left_out = f"... {len(all_lines) - 2 * lines} lines ..."
    return "\n".join([*all_lines[:lines], left_out, *all_lines[-lines:]])


@pytest.fixture
def reloadable(start: Callable[..., Program], tmp_path: Path) -> Callable[..., Reloadable]:
    """``reloadable(workers=2)`` starts such a program."""
    return lambda **how: Reloadable(start, tmp_path, **how)
