"""A program of ours: what it inherits, what it says, and that nothing of it is left once it was ended."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from prefork.workers.programs import Memory, adopt_program, call_of, start_program
from tests.support.processes import fds_of, is_alive
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from prefork.workers.programs import ProgramChild

pytestmark = pytest.mark.processes

LONG = 60.0
"""Seconds; more than anything here takes."""


@pytest.fixture
def output() -> Iterator[Memory]:
    """Give a memory for a program's words."""
    with Memory("test") as memory:
        yield memory


def python(source: str) -> list[str]:
    """Return the command that runs a source."""
    return [sys.executable, "-c", source]


def said_by(child: ProgramChild, output: Memory) -> str:
    """Wait for a program's end and return its words."""
    assert child.wait(LONG)
    assert child.end().code == 0
    return output.last(10_000).decode()


def test_output_and_status_are_the_programs(output: Memory) -> None:
    """Both standard streams go into the memory, and the exit status comes back, however often it is asked for."""
    source = "import sys; print('one', flush=True); print(sys.stdin.read() + 'two', file=sys.stderr); sys.exit(7)"
    child = start_program(python(source), output=output)

    assert child.wait(LONG)
    assert child.has_ended()
    assert (child.end().code, child.end().code) == (7, 7)
    assert output.last(100) == b"one\ntwo\n"
    assert output.last(4) == b"two\n"


def test_folder_environment_and_descriptors_are_those_given(tmp_path: Path, output: Memory) -> None:
    """A program runs where and with what it is told, and has no descriptor of this process but those to keep."""
    source = (
        "import json, os\n"
        "fds = map(int, os.listdir('/proc/self/fd'))\n"
        "fds = [fd for fd in fds if os.path.exists(f'/proc/self/fd/{fd}')]  # not that of listdir()\n"
        "leads = os.getsid(0) == os.getpid()\n"
        "print(json.dumps([os.getcwd(), os.environ['WORD'], fds, leads]))"
    )
    inheritable, other = os.pipe()
    os.set_inheritable(inheritable, True)
    with Memory("kept") as kept:
        child = start_program(
            python(source),
            folder=str(tmp_path),
            environment={"WORD": "yes"},
            output=output,
            keep=[kept.fd],
        )
        folder, word, fds, leads = json.loads(said_by(child, output))
        os.close(inheritable)
        os.close(other)

        assert (folder, word, leads) == (str(tmp_path), "yes", True)
        assert sorted(fds) == [0, 1, 2, kept.fd]


def test_function_is_called_with_this_path_and_its_arguments(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, output: Memory
) -> None:
    """A function of ours runs with the search path of this process, and finds its arguments alone."""
    (tmp_path / "found.py").write_text("import sys\ndef run(): print(sys.argv[1:], sys.path)\n")
    monkeypatch.syspath_prepend(tmp_path)
    child = start_program(call_of("found", "run", ["--x", "1"]), output=output)

    assert said_by(child, output) == f"['--x', '1'] {sys.path}\n"


def test_end_takes_what_the_program_has_started_along(output: Memory) -> None:
    """A program that goes on is waited for no longer than asked, and is killed with its own children."""
    source = (
        "import subprocess, sys, time\n"
        "other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(other.pid, flush=True); time.sleep(600)"
    )
    child = start_program(python(source), output=output)
    wait_until(lambda: output.last(100).endswith(b"\n"), "it has started another one")
    other = int(output.last(100))

    assert not child.wait(0.01)
    assert not child.has_ended()
    assert child.end().signal == signal.SIGKILL
    wait_until(lambda: not is_alive(other), "what it started has ended")


def test_group_of_a_program_that_has_ended_is_killed(output: Memory) -> None:
    """What a program leaves behind is ended with it, too: the number of the group is still its own."""
    source = (
        "import subprocess, sys\n"
        "other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(other.pid, flush=True)"
    )
    child = start_program(python(source), output=output)
    assert child.wait(LONG)
    other = int(output.last(100))
    assert is_alive(other)

    assert child.end().code == 0
    wait_until(lambda: not is_alive(other), "what it started has ended")


def test_collected_program_takes_no_strangers_group_along(output: Memory) -> None:
    """Where something else has collected the program, its number is another's perhaps: nothing is killed."""
    source = (
        "import subprocess, sys\n"
        "other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(other.pid, flush=True)"
    )
    child = start_program(python(source), output=output)
    assert child.wait(LONG)
    os.waitpid(child.pid, 0)

    status = child.end()
    other = int(output.last(100))
    assert (status.code, status.signal) == (None, None)
    assert is_alive(other)
    os.kill(other, signal.SIGKILL)


def test_released_program_is_adopted_by_its_pid() -> None:
    """A program that runs on is held again by its pid, and by nothing else once it has ended."""
    pid = start_program(python("import time; time.sleep(600)")).release()
    adopted = adopt_program(pid)

    assert adopted is not None
    assert adopted.pid == pid
    assert adopted.end().signal == signal.SIGKILL
    assert adopt_program(pid) is None


def test_stranger_is_not_adopted() -> None:
    """A pid that is not a child's, or nobody's, is not taken for the program."""
    assert adopt_program(os.getppid()) is None
    assert adopt_program(2**22 - 1) is None


def test_ended_program_is_collected_and_not_adopted() -> None:
    """A program that has ended meanwhile is collected, and another one has to be started."""
    child = start_program(python(""))
    assert child.wait(LONG)

    assert adopt_program(child.release()) is None


def test_program_that_cannot_be_started_leaves_nothing() -> None:
    """A command that does not exist is an OSError, and no descriptor is left over."""
    before = fds_of()
    with pytest.raises(FileNotFoundError):
        start_program(["/nowhere/python"])
    assert fds_of() == before


def test_program_that_cannot_be_held_is_ended() -> None:
    """Without a descriptor to hold it by, a program is killed and collected, and the error says why."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pidfd_open", _no_descriptor)
        with pytest.raises(OSError, match="Too many open files"):
            start_program(python("import time; time.sleep(600)"))


def _no_descriptor(_pid: int) -> int:
    raise OSError(errno.EMFILE, "Too many open files")
