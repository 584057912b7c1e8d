"""The quick tests start no process: which tests are quick, and that each attempt makes one fail."""

from __future__ import annotations

import _posixsubprocess
import os
import subprocess
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from tests.support.quick import is_quick, simulation_of

if TYPE_CHECKING:
    from collections.abc import Callable


def _fork() -> None:
    if os.fork() == 0:
        os._exit(1)


ATTEMPTS: dict[str, Callable[[], object]] = {
    "os.fork": _fork,
    "os.posix_spawn": lambda: os.posix_spawn("/bin/false", ["false"], {}),
    "os.system": lambda: os.system("false"),
    "os.exec": lambda: os.execv("/bin/false", ["false"]),
    "subprocess.Popen": lambda: subprocess.run(["false"], check=False),
    "_posixsubprocess.fork_exec": _posixsubprocess.fork_exec,
}


@pytest.mark.parametrize("event", ATTEMPTS)
def test_process_fails_a_quick_test(event: str) -> None:
    """Whatever way a quick test takes to start a process, it fails, and the message names the way and the remedy."""
    with pytest.raises(pytest.fail.Exception, match=rf"calls {event}: .*@pytest\.mark\.processes"):
        ATTEMPTS[event]()


@pytest.mark.processes
def test_other_tests_may_start_processes() -> None:
    """A test that is marked ``processes`` starts what it wants."""
    assert subprocess.run(["true"], check=False).returncode == 0


def item_at(folder: str, *fixtures: str, markers: tuple[str, ...] = ()) -> pytest.Item:
    """Invent a test."""
    return SimpleNamespace(  # type: ignore[return-value]
        path=SimpleNamespace(parent=SimpleNamespace(name=folder)),
        fixturenames=fixtures,
        get_closest_marker=lambda name: name if name in markers else None,
    )


def test_quick_tests_are_chosen() -> None:
    """A test of tests/unit or tests/compat is quick unless it uses ``start`` or is marked ``processes``."""
    assert is_quick(item_at("unit", "tmp_path"))
    assert is_quick(item_at("compat", markers=("once",)))
    assert not is_quick(item_at("live"))
    assert not is_quick(item_at("compat", "tmp_path", "start"))
    assert not is_quick(item_at("unit", markers=("processes",)))


def test_repetitions_are_recognized() -> None:
    """Tests that differ in their seed only are one simulation, and all others are different ones."""

    def item(nodeid: str, **params: object) -> pytest.Item:
        spec = SimpleNamespace(params=params)
        return SimpleNamespace(nodeid=nodeid, callspec=spec)  # type: ignore[return-value]

    first = simulation_of(item("t.py::test[0-a]", seed=0, load="a"))
    assert first == simulation_of(item("t.py::test[1-a]", seed=1, load="a"))
    assert first != simulation_of(item("t.py::test[0-b]", seed=0, load="b"))
    assert first != simulation_of(item("t.py::other[0-a]", seed=0, load="a"))
    one, other = item("t.py::test[a]", load="a"), item("t.py::test[b]", load="b")
    assert simulation_of(one) != simulation_of(other)


@pytest.mark.parametrize("seed", range(3))
def test_one_seed_is_quick(request: pytest.FixtureRequest, seed: int) -> None:
    """Of this test's three seeds the first one alone is marked."""
    assert (request.node.get_closest_marker("quick") is not None) is (seed == 0)
