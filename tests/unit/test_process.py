"""What a process is: what its environment and the descriptors that it was given say of it."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import msgspec
import pytest

from prefork.host import handover
from prefork.host.handover import (
    FORMAT,
    STATE_VARIABLE,
    TRIAL_VARIABLE,
    HandoverError,
    Inventory,
    MasterState,
    TrialOrders,
)
from prefork.host.named_socket import SocketName
from prefork.host.process import Process
from prefork.workers import forks
from prefork.workers.pool.table import PoolState
from tests.support.server import environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def list_of_forks() -> Iterator[None]:
    """Take off the list of what a fork lets go of what the test has put there."""
    before = list(forks._entries)
    yield
    forks._entries[:] = before


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Give a listening TCP socket."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def state_of(**facts: object) -> MasterState:
    """Return the state of a master without workers."""
    pool = PoolState(
        board=-1,
        proof=-1,
        slots=1,
        layout=(),
        life=(-1, -1),
        generation=0,
        lost=0,
        workers=(),
    )
    usual = {"format": FORMAT, "pid": os.getpid(), "pool": pool, "listeners": (), "kept": ()}
    rest = {"wakeup": (-1,) * 4, "lost_time": 0.0, "floor": 1, "floor_set": 1, "size": 1}
    times = {"load_timeout": 30.0, "graceful_timeout": 25.0}
    return MasterState(**{**usual, **rest, **times, "settings": {}, **facts})  # type: ignore[arg-type]


@pytest.fixture
def left_behind(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, str]]:
    """``left_behind(pid=1)`` returns an environment that leads to such a state."""
    # The descriptors of such a state are of no process.
    monkeypatch.setattr("prefork.host.process.os.set_inheritable", lambda *_: None)

    def environ(**facts: object) -> dict[str, str]:
        memory = os.memfd_create(handover.MEMFD_NAME)
        state_of(**facts).write(memory)
        return {STATE_VARIABLE: f"{os.getpid()}:{memory}", "HOME": "/"}

    return environ


def test_process_that_was_started_afresh() -> None:
    """Without variables of ours a process is neither the next image of a master nor a trial."""
    process = Process({"HOME": "/"})

    assert (process.handover, process.is_trial, process.inventory) == (None, False, None)
    assert not process.has_adoptable_sockets
    assert process.unclaimed() == []
    assert process.program.environment == {"HOME": "/"}


def test_next_image_of_a_master(
    left_behind: Callable[..., dict[str, str]], listener: socket.socket
) -> None:
    """The next image finds the state, its environment is clean, and a server may claim a socket once."""
    environ = left_behind(listeners=(listener.fileno(),))
    process = Process(environ)
    asked = socket.AF_INET, socket.SOCK_STREAM, listener.getsockname()

    assert process.handover is not None
    assert not process.is_trial
    assert environ == process.program.environment == {"HOME": "/"}
    claimed = process.claim(*asked)
    assert claimed is not None
    assert claimed[1] == listener.fileno()
    assert process.claim(*asked) is None
    assert process.unclaimed() == []


def test_socket_that_no_server_claims(
    left_behind: Callable[..., dict[str, str]], listener: socket.socket
) -> None:
    """What no server has claimed is returned once, and cannot be claimed afterwards."""
    process = Process(left_behind(listeners=(listener.fileno(),)))
    host, port = listener.getsockname()

    assert process.claim(socket.AF_INET, socket.SOCK_STREAM, (host, port + 1)) is None
    assert [fd for _, fd in process.unclaimed()] == [listener.fileno()]
    assert process.claim(socket.AF_INET, socket.SOCK_STREAM, (host, port)) is None


def test_state_is_adopted_once(
    left_behind: Callable[..., dict[str, str]], listener: socket.socket
) -> None:
    """After the adoption nothing is pending, and the descriptor of a claimed socket is closed: its server has another."""
    fd = os.dup(listener.fileno())
    process = Process(left_behind(listeners=(fd,)))
    process.claim(socket.AF_INET, socket.SOCK_STREAM, listener.getsockname())
    process.release_claimed(fd)
    process.end_handover()
    process.end_handover()

    assert process.handover is None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.parametrize("named_again", [True, False])
def test_pid_file_after_an_adoption(
    left_behind: Callable[..., dict[str, str]], tmp_path: os.PathLike[str], *, named_again: bool
) -> None:
    """A pid file that the new settings do not name is removed, one that they name stays with its lock."""
    path = os.path.join(tmp_path, "pid")
    fd = os.open(path, os.O_CREAT | os.O_RDWR)
    process = Process(left_behind(pidfile=fd))
    process.pidfile = fd if named_again else None
    process.end_handover()

    assert os.path.exists(path) is named_again
    if named_again:
        os.close(fd)


@pytest.mark.parametrize(
    "facts", [{"pid": 1}, {"format": FORMAT + 1}], ids=["of another process", "another format"]
)
def test_state_that_is_not_for_this_image(
    left_behind: Callable[..., dict[str, str]], facts: dict[str, int]
) -> None:
    """A state of another process or of another format is an error, and never a fresh start."""
    with pytest.raises(HandoverError, match=f"{STATE_VARIABLE}=.* leads to a state of format"):
        Process(left_behind(**facts))


@pytest.mark.parametrize("cut", [0, 1, -1], ids=["nothing", "the first byte", "all but the last"])
def test_state_that_is_torn(left_behind: Callable[..., dict[str, str]], cut: int) -> None:
    """A state of which a part is missing is an error."""
    environ = left_behind()
    memory = int(environ[STATE_VARIABLE].partition(":")[2])
    os.ftruncate(memory, cut if cut >= 0 else os.fstat(memory).st_size + cut)
    with pytest.raises(HandoverError, match="leads to no state"):
        Process(environ)


@pytest.mark.parametrize("memory", ["", "nonsense", "-1", "999999", "0"])
def test_variable_that_leads_nowhere(memory: str) -> None:
    """A variable for this process that leads to no memory of ours is an error."""
    with pytest.raises(HandoverError, match=f"{STATE_VARIABLE}=.* leads to no state"):
        Process({STATE_VARIABLE: f"{os.getpid()}:{memory}"})


@pytest.mark.parametrize("text", ["", "nonsense", "1:3", "3"])
def test_variable_of_another_process(text: str, caplog: pytest.LogCaptureFixture) -> None:
    """A variable that a process has inherited from the next image of a master costs a line of the log."""
    assert Process({STATE_VARIABLE: text}).handover is None
    assert f"{STATE_VARIABLE} is ignored" in caplog.text
    assert len(caplog.records) == 1


@pytest.mark.processes
def test_process_ends_where_the_state_cannot_be_read(tmp_path: Path) -> None:
    """A process whose state cannot be read ends with status 1 and a line, whatever its code would catch."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\n"
        f"os.environ[{STATE_VARIABLE!r}] = f'{{os.getpid()}}:0'\n"
        "try:\n    import prefork\nexcept BaseException:\n    pass\nsys.exit(0)\n"
    )
    done = subprocess.run(
        [sys.executable, program], capture_output=True, text=True, check=False, env=environment()
    )
    assert done.returncode == 1
    assert "cannot go on after the exec" in done.stderr


@pytest.mark.parametrize("room", [0, 1, 100])
def test_state_that_does_not_fit_is_refused(room: int) -> None:
    """A state that cannot be written whole, because files may not be that long, is an error before the exec."""
    memory = os.memfd_create(handover.MEMFD_NAME)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises(HandoverError, match="cannot be written: File too large"):
            state_of().write(memory)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        os.close(memory)


def test_state_that_cannot_be_put_into_words_is_refused() -> None:
    """A state with a text that is no UTF-8 is an error before the exec."""
    memory = os.memfd_create(handover.MEMFD_NAME)
    with pytest.raises(HandoverError, match="cannot be written"):
        state_of(settings={"pidfile": "\udcff"}).write(memory)
    os.close(memory)


def test_child_forgets_what_its_parent_is(
    left_behind: Callable[..., dict[str, str]], listener: socket.socket
) -> None:
    """In a child nothing is pending: no socket can be claimed, and the descriptors of the state are closed."""
    fd = os.dup(listener.fileno())
    process = Process(left_behind(listeners=(fd,)))
    process.pidfile, process.watcher = 3, 4
    process._forget()  # what a fork calls

    assert (process.handover, process.pidfile, process.watcher) == (None, None, None)
    assert not process.has_adoptable_sockets
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


# --- a trial


@pytest.fixture
def report() -> Iterator[int]:
    """Give the memory for the report of a trial."""
    memory = os.memfd_create("prefork-trial-report")
    yield memory
    os.close(memory)


def test_trial_has_names_in_place_of_sockets(report: int, listener: socket.socket) -> None:
    """A trial finds its inventory; a server claims the name of a socket, without the socket."""
    inventory = Inventory(
        (SocketName.of(listener.fileno()),), endpoints={"metrics": "127.0.0.1:9100"}
    )
    orders = msgspec.json.encode(TrialOrders(os.getppid(), report, inventory)).decode()
    environ = {TRIAL_VARIABLE: orders}
    process = Process(environ)

    assert process.is_trial
    assert process.inventory is not None
    assert process.inventory.endpoints == {"metrics": "127.0.0.1:9100"}
    assert environ == process.program.environment == {}
    name, fd = process.claim(socket.AF_INET, socket.SOCK_STREAM, listener.getsockname()) or (0, 0)
    assert isinstance(name, SocketName)
    assert (name.sockname, fd) == (listener.getsockname(), None)
    assert not os.get_inheritable(report)


@pytest.mark.parametrize("text", ["", "{}", '{"report_to": 0, "inventory": {"sockets": []}}'])
def test_orders_that_are_not_for_this_process(text: str) -> None:
    """Orders that somebody made up, or whose report would go into another file, make no trial."""
    assert not Process({TRIAL_VARIABLE: text}).is_trial
