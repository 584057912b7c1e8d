"""What the supervisor is promised of the operating system, held by the real module and by the fake of the tests alike."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import select
import signal
import threading
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from prefork.workers import system
from prefork.workers.states import ExitStatus, MainThread
from prefork.workers.system import Child, System
from tests.support.fake_system import FakeSystem
from tests.support.processes import children_of, fds_of, status_of
from tests.support.waiting import CEILING, let_pass, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REFUSED = OSError(errno.EAGAIN, "Resource temporarily unavailable")
NO_DESCRIPTOR = OSError(errno.EMFILE, "Too many open files")


class World:
    """A system, and what happens to its children; this one is invented."""

    system: System

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self._fake = FakeSystem()
        self.system = self._fake
        self._children: list[Child] = []

    def fork(self, count: int) -> tuple[list[Child | None], OSError | None]:
        """Fork this many children, which live until they are ended."""
        children, failure = self.system.fork_children([_never_called] * count)
        self._children += [child for child in children if child is not None]
        return children, failure

    def end(self, child: Child, code: int | None = None, *, by: int | None = None) -> None:
        """Have a child end, and return when it has."""
        self._fake.end(child.pid, code, by=by)

    def steal(self, child: Child) -> None:
        """Have a child end whose status another part of the program collects."""
        self._fake.end(child.pid)

    def refuse_fork(self, number: int) -> None:
        """Have the fork with that number fail, 0 for the first one."""
        self._fake.fork_errors[number] = REFUSED

    def refuse_pidfd(self, number: int) -> None:
        """Have the child with that number get no pidfd."""
        self._fake.pidfd_errors[number] = NO_DESCRIPTOR

    def close(self) -> None:
        """Leave nothing; the pidfds are the caller's to close."""
        for child in self._children:
            self.system.release(child)


class RealWorld(World):
    """Real children: each waits for the exit status that it is to end with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(monkeypatch)
        self.system = system
        self._orders: dict[int, int] = {}

    def fork(self, count: int) -> tuple[list[Child | None], OSError | None]:
        """Fork real ones, each with a pipe of its own."""
        pipes = [os.pipe() for _ in range(count)]
        runs = [functools.partial(_live, reader) for reader, _ in pipes]
        children, failure = self.system.fork_children(runs)
        for (reader, writer), child in zip(pipes, children, strict=True):
            os.close(reader)
            if child is None:
                os.close(writer)
            else:
                self._orders[child.pid] = writer
                self._children.append(child)
        return children, failure

    def end(self, child: Child, code: int | None = None, *, by: int | None = None) -> None:
        """Write the status into its pipe, or signal it."""
        if by is None:
            os.write(self._orders[child.pid], bytes([code or 0]))
        else:
            os.kill(child.pid, by)
        self.system.wait_for_end(child)

    def steal(self, child: Child) -> None:
        """Collect it as a stranger would."""
        self.end(child, 3)
        os.waitpid(child.pid, 0)

    def refuse_fork(self, number: int) -> None:
        """Have os.fork() fail."""
        self._fail_once("fork", number, REFUSED)

    def refuse_pidfd(self, number: int) -> None:
        """Have os.pidfd_open() fail."""
        self._fail_once("pidfd_open", number, NO_DESCRIPTOR)

    def _fail_once(self, name: str, number: int, error: OSError) -> None:
        real: Callable[..., Any] = getattr(os, name)
        left = [number]

        def call(*arguments: object) -> Any:
            left[0] -= 1
            if left[0] == -1:
                raise error
            return real(*arguments)

        self._monkeypatch.setattr(os, name, call)

    def close(self) -> None:
        """End and collect all, too."""
        self._monkeypatch.undo()
        for child in self._children:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(child.pid, signal.SIGKILL)
                os.waitpid(child.pid, 0)
        for writer in self._orders.values():
            os.close(writer)
        super().close()


def _never_called(_mask: set[int]) -> NoReturn:
    raise AssertionError("a fake runs nothing")


def _live(orders: int, mask: set[int]) -> NoReturn:
    system.set_mask(mask)
    os._exit(os.read(orders, 1)[0])


@pytest.fixture(
    name="world",
    params=[World, pytest.param(RealWorld, marks=pytest.mark.processes)],
)
def _world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Give both worlds, one after the other."""
    world = request.param(monkeypatch)
    yield world
    world.close()


def forked(world: World, count: int = 1) -> list[Child]:
    """Fork children, all of which there are."""
    children, failure = world.fork(count)
    assert failure is None
    return [child for child in children if child is not None]


def is_readable(fd: int) -> bool:
    """Return whether a poll would wake for a descriptor."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


# --- what both promise


def test_child_that_lives_has_no_status(world: World) -> None:
    """A child is forked for each run, and while it lives its pidfd is silent and there is nothing to collect."""
    children = forked(world, 3)
    assert len({child.pid for child in children}) == 3
    for child in children:
        assert not is_readable(child.pidfd)
        assert world.system.collect(child) is None
    assert not world.system.wait_for_all(children, 0.0)


@pytest.mark.parametrize("code", [0, 3])
def test_child_that_ends_tells_its_status(world: World, code: int) -> None:
    """A child that exits wakes who polls its pidfd, and is collected with its exit status; the others live on."""
    first, second = forked(world, 2)
    world.end(second, code)
    assert is_readable(second.pidfd)
    assert not is_readable(first.pidfd)
    assert world.system.wait_for_all([second], 0.0)
    assert not world.system.wait_for_all([first, second], 0.0)
    status = world.system.collect(second)
    assert status is not None
    assert (status.code, status.signal) == (code, None)
    assert world.system.collect(first) is None


def test_child_that_a_signal_ends_tells_which(world: World) -> None:
    """A child that is killed, from outside or by the supervisor, is collected with the signal's number."""
    crashed, killed = forked(world, 2)
    world.end(crashed, by=signal.SIGUSR2)
    world.system.send(killed, signal.SIGKILL)
    world.system.wait_for_end(killed)
    for child, number in ((crashed, signal.SIGUSR2), (killed, signal.SIGKILL)):
        status = world.system.collect(child)
        assert status is not None
        assert (status.code, status.signal) == (None, number)


def test_status_that_was_taken_is_unknown(world: World) -> None:
    """A child whose status another part of the program has collected has ended, with neither code nor signal."""
    (child,) = forked(world)
    world.steal(child)
    assert is_readable(child.pidfd)
    assert world.system.collect(child) == ExitStatus()


def test_signal_to_one_that_has_ended_is_no_error(world: World) -> None:
    """A signal that comes too late is lost, before the child was collected and afterwards."""
    (child,) = forked(world)
    world.end(child, 0)
    world.system.send(child, signal.SIGKILL)
    status = world.system.collect(child)
    assert status is not None
    assert status.code == 0
    world.system.send(child, signal.SIGKILL)


def test_fork_that_fails_ends_the_batch(world: World) -> None:
    """When the kernel refuses a fork, those before it stand, those after it are not tried, and the error says why."""
    world.refuse_fork(2)
    children, failure = world.fork(5)
    assert failure is not None
    assert failure.errno == errno.EAGAIN
    assert [child is not None for child in children] == [True, True, False, False, False]


def test_child_without_a_descriptor_costs_only_itself(world: World) -> None:
    """A child for which there is no pidfd could not be supervised: it is ended, and its siblings stand."""
    world.refuse_pidfd(1)
    children, failure = world.fork(3)
    assert failure is not None
    assert failure.errno == errno.EMFILE
    assert [child is not None for child in children] == [True, False, True]


# --- what only a real child can show


@pytest.fixture(name="real")
def _real(monkeypatch: pytest.MonkeyPatch) -> Iterator[RealWorld]:
    """Give the real world only."""
    world = RealWorld(monkeypatch)
    yield world
    world.close()


@pytest.mark.processes
def test_error_of_a_fork_holds_no_child(real: RealWorld) -> None:
    """The error of a fork that failed has no traceback: that would keep what the children were to be made of."""
    real.refuse_fork(0)
    _, failure = real.fork(1)
    assert failure is not None
    assert failure.__traceback__ is None


@pytest.mark.processes
def test_status_tells_what_the_child_has_used(real: RealWorld) -> None:
    """The status has the processor time, context switches and peak memory that the kernel has counted."""
    (child,) = forked(real)
    real.end(child, 0)
    status = real.system.collect(child)
    assert status is not None
    assert status.usage.peak_bytes > 1 << 20
    assert status.usage.user_ns + status.usage.system_ns > 0


def _hear(threads: int, blocked: bool, told: int, mask: set[int]) -> NoReturn:
    """Be a child that takes SIGUSR1, or leaves it pending, with some threads."""
    _ = signal.signal(signal.SIGUSR1, lambda _number, _frame: None)
    for _ in range(threads - 1):
        threading.Thread(target=let_pass, args=(1000.0,), daemon=True).start()
    system.set_mask(mask | {signal.SIGUSR1} if blocked else mask)
    os.write(told, b"!")
    while True:
        signal.pause()


@pytest.mark.processes
@pytest.mark.parametrize(
    ("threads", "blocked", "alone"),
    [(1, False, True), (1, True, False), (2, False, False)],
)
def test_only_a_single_thread_that_has_the_signal_counts(
    threads: int, blocked: bool, alone: bool
) -> None:
    """A child has received a signal alone when it has one thread and the signal is not pending any more."""
    reader, writer = os.pipe()
    (child,), _ = system.fork_children([functools.partial(_hear, threads, blocked, writer)])
    assert child is not None
    try:
        assert os.read(reader, 1) == b"!"
        system.send(child, signal.SIGUSR1)
        facts = status_of(child.pid)
        if alone:
            wait_until(lambda: system.has_received_alone(child, signal.SIGUSR1), "it has it")
        assert system.has_received_alone(child, signal.SIGUSR1) is alone, facts
    finally:
        system.send(child, signal.SIGKILL)
        system.wait_for_end(child)
        system.collect(child)
        assert not system.has_received_alone(child, signal.SIGUSR1)
        system.release(child)
        for fd in (reader, writer):
            os.close(fd)


@pytest.mark.processes
def test_state_of_a_main_thread() -> None:
    """A child that sleeps, computes or is stopped is told apart, with its CPU time; one that has ended has no state."""
    reader, writer = os.pipe()

    def wait_then_compute(_mask: set[int]) -> NoReturn:
        os.read(reader, 1)
        while True:
            pass

    (child,), _ = system.fork_children([wait_then_compute])
    assert child is not None

    def thread() -> MainThread:
        found = system.main_thread(child)
        assert found is not None
        return found

    try:
        wait_until(lambda: thread().state == "S", "it sleeps")
        os.write(writer, b"!")
        wait_until(lambda: thread().state == "R", "it computes")
        wait_until(lambda: thread().cpu > 0.02, "its CPU time grows")
        system.send(child, signal.SIGSTOP)
        wait_until(lambda: thread().state == "T", "it is stopped")
    finally:
        system.send(child, signal.SIGKILL)
        system.wait_for_end(child)
        system.collect(child)
        assert system.main_thread(child) is None
        system.release(child)
        for fd in (reader, writer):
            os.close(fd)


# --- the gate


def _write_and_wait(told: int, _mask: set[int]) -> NoReturn:
    os.write(told, b"!")
    while True:
        signal.pause()


@pytest.mark.processes
def test_child_without_a_pidfd_never_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """No child runs while one of them may have to be killed, and one that has to be never runs."""
    reader, writer = os.pipe()
    opened = []
    real = os.pidfd_open

    def pidfd_open(pid: int) -> int:
        opened.append(pid)
        if len(opened) == 2:
            assert select.select([reader], [], [], 0.2)[0] == []
            raise NO_DESCRIPTOR
        return real(pid)

    monkeypatch.setattr(os, "pidfd_open", pidfd_open)
    children, failure = system.fork_children([functools.partial(_write_and_wait, writer)] * 3)
    held = [child for child in children if child is not None]
    try:
        assert failure is NO_DESCRIPTOR
        assert [child is not None for child in children] == [True, False, True]
        with pytest.raises(ChildProcessError):
            os.waitpid(opened[1], 0)
        for _ in held:
            assert os.read(reader, 1) == b"!"
    finally:
        os.close(writer)
        for child in held:
            system.send(child, signal.SIGKILL)
            system.wait_for_end(child)
            system.collect(child)
            system.release(child)
    assert os.read(reader, 1) == b""
    os.close(reader)


@pytest.mark.processes
def test_child_of_another_thread_gets_no_pidfd(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that another thread forks while the children are being made holds none of their pidfds."""
    reader, writer = os.pipe()
    seen: list[int] = []

    def fork_and_look() -> None:
        if (pid := os.fork()) == 0:
            held = [what for what in fds_of(os.getpid()).values() if "[pidfd]" in what]
            os._exit(len(held))
        seen.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    class Gate(system._Gate):
        def let_in(self, count: int) -> None:
            # All pidfds are open here, and the caller knows of none yet.
            other = threading.Thread(target=fork_and_look)
            other.start()
            other.join()
            super().let_in(count)

    monkeypatch.setattr(system, "_Gate", Gate)
    monkeypatch.setattr("warnings.filters", [("ignore", None, DeprecationWarning, None, 0)])
    children, failure = system.fork_children([functools.partial(_write_and_wait, writer)] * 3)

    assert failure is None
    for child in children:
        assert child is not None
        system.send(child, signal.SIGKILL)
        system.wait_for_end(child)
        system.collect(child)
        system.release(child)
    os.close(reader)
    os.close(writer)
    assert seen == [0]
    assert not [what for what in fds_of(os.getpid()).values() if "[pidfd]" in what]


@pytest.mark.processes
@pytest.mark.parametrize("has_stranger", [False, True])
def test_children_at_the_gate_end_with_their_parent(
    monkeypatch: pytest.MonkeyPatch, has_stranger: bool
) -> None:
    """A parent that dies before it lets its children in leaves none, whatever another child of it holds."""
    reader, writer = os.pipe()
    stranger_reader, stranger_writer = os.pipe()

    def die(_pid: int) -> NoReturn:
        if has_stranger and os.fork() == 0:
            os.close(writer)
            os.close(stranger_writer)
            os.read(stranger_reader, 1)  # until the test has seen the others end
        os._exit(0)

    if (parent := os.fork()) == 0:
        monkeypatch.setattr(os, "pidfd_open", die)
        system.fork_children([functools.partial(_write_and_wait, writer)] * 3)
        os._exit(1)
    os.close(writer)
    os.close(stranger_reader)
    try:
        assert os.waitstatus_to_exitcode(os.waitpid(parent, 0)[1]) == 0
        assert select.select([reader], [], [], CEILING)[0] == [reader]
        assert os.read(reader, 1) == b""
    finally:
        os.close(stranger_writer)
        os.close(reader)
        wait_until(_has_no_children, "all have ended")


def _has_no_children() -> bool:
    with contextlib.suppress(ChildProcessError):  # where orphans are adopted by another process
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    return not children_of(os.getpid())


@pytest.mark.processes
def test_without_descriptors_for_the_gate_nothing_is_forked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where there is no descriptor for the gate, no child is made, and the error says why."""

    def pipe2(_flags: int) -> NoReturn:
        raise NO_DESCRIPTOR

    monkeypatch.setattr(os, "pipe2", pipe2)

    assert system.fork_children([_never_called] * 2) == ([None, None], NO_DESCRIPTOR)
