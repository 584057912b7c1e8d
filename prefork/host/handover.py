"""What a master hands over: records for its next image, and for a trial of new code.

An exec in place keeps the process, its children and its open descriptors, and destroys its memory.
So the master writes all that the next image needs into a ``MasterState`` just before. The state
goes through a memfd that no worker has, because pids and descriptors that a worker could have
written must never be believed. A trial is another process, which has none of the descriptors: it
gets an ``Inventory``, which names things instead.
"""

from __future__ import annotations

import contextlib
import os
from typing import Final, Literal, Self

import msgspec

from prefork.host.named_socket import SocketName
from prefork.workers.credentials import Credentials
from prefork.workers.errors import PreforkError
from prefork.workers.files import Identity
from prefork.workers.parking import Link
from prefork.workers.pool.table import PoolState
from prefork.workers.system import Child

FORMAT: Final = 12
"""The version of ``MasterState``. A master does not exec code whose trial reports another one."""

STATE_VARIABLE: Final = "PREFORK_HANDOVER"
"""The environment variable that leads the next image to the state: ``PID:DESCRIPTOR``, of the memfd."""

TRIAL_VARIABLE: Final = "PREFORK_TRIAL"
"""The environment variable that makes a process a trial. Its value is a ``TrialOrders`` in JSON."""

MEMFD_NAME: Final = "prefork-handover"


class EndpointState(msgspec.Struct, frozen=True):
    """A socket on which the metrics process answers. address: as ``Endpoint.address`` has it."""

    address: str
    fd: int


class MetricsState(msgspec.Struct, frozen=True):
    """The metrics process, which the next image replaces, and the sockets that both answer on.

    endpoints: by the key of the setting. agent_mode: the setting. child: the process; None where there is none at this moment. title, metrics_dir, umask,
    credentials: what a metrics process is made from, as in MetricsSpec and WorkerSpec; the folder as
    bytes, because a path need not be UTF-8.
    """

    endpoints: dict[str, EndpointState]
    agent_mode: Literal["maxconn", "weight"]
    child: Child | None
    title: str
    metrics_dir: bytes | None
    umask: int | None
    credentials: Credentials | None

    @property
    def fds(self) -> list[int]:
        """All descriptors that have to survive the exec."""
        sockets = [one.fd for one in self.endpoints.values()]
        return sockets if self.child is None else [*sockets, self.child.pidfd]


class MetricsOrders(msgspec.Struct, frozen=True):
    """What the caretaker gives a metrics process that it starts as a program of its own.

    board: the descriptor of the scoreboard, which has this many slots. life: the read end of the
    life pipe.
    """

    metrics: MetricsState
    board: int
    slots: int
    life: int
    master_pid: int


class Attempt(msgspec.Struct, frozen=True):
    """One run of the program after an exec, which succeeds when a master has adopted the state.

    number: 1, and one more with each attempt in a row that nobody has ordered. is_ordered: whether
    it began with HUP or USR2; the others are the caretaker's own. is_last: whether no worker was
    left when it began. failing_since: when the first attempt of the row failed, in seconds on the
    master's clock; None before.
    """

    number: int = 1
    is_ordered: bool = True
    is_last: bool = False
    failing_since: float | None = None


class LotState(msgspec.Struct, frozen=True):
    """The lot, which goes on under the next image with the links between it and the workers.

    child: the process; None where there is none at this moment. control: the master's end of its
    socket; None without a process.
    """

    child: Child | None
    control: int | None
    links: tuple[Link, ...]

    @property
    def fds(self) -> list[int]:
        """All descriptors of it."""
        of_child = [] if self.child is None else [self.child.pidfd]
        control = [] if self.control is None else [self.control]
        return [*of_child, *control, *(fd for link in self.links for fd in link.fds)]


class Leftover(msgspec.Struct, frozen=True):
    """A process that the program has started, and that its previous image cannot end any more.

    name: for the log. ends_by_itself: whether it ends when the last process that uses it has ended.
    """

    child: Child
    name: str
    ends_by_itself: bool = False


class MasterState(msgspec.Struct, frozen=True):
    """All that one image of the master leaves to the next.

    pid: of this process; a state with another pid is refused.
    listeners: descriptors of sockets that the next image's servers take by their address.
    kept: descriptors of sockets that the program knows by their number (``fd://N``, systemd).
    others: descriptors of sockets that the program has bound beside the pool.
    socket_files: the file of each Unix socket among ``listeners`` and ``others``, by descriptor.
    metrics_dir: the folder in which the application's metrics are kept by slot; bytes, because a
    path need not be UTF-8.
    leftovers: processes that the program has started, to be ended after the workers that use them.
    folders: temporary folders of the program, to be removed then: path, and which file it is.
    wakeup: the descriptors of the two pipes that wake the master.
    lost_time: seconds that the master's clock stood still so far.
    floor: workers to keep, as TTIN and TTOU have left it; floor_set: the setting ``workers`` that it
    comes from, 0 if it comes from load.
    size: workers wanted now, with those that load has added.
    settings: as a user would write them, to log which have changed.
    load_timeout, graceful_timeout: how long the new code may take until it serves, and the workers
    until they have left at a stop, in seconds.
    attempt: which run of the program this is.
    again: the signal that has asked for one more reload meanwhile; "" for none.
    pidfile: the descriptor that holds the lock on the pid file.
    watcher: the pid of the child that watches the source files.
    lot: the lot with the parked connections; None where no server parks.
    """

    format: int
    pid: int
    pool: PoolState
    listeners: tuple[int, ...]
    kept: tuple[int, ...]
    wakeup: tuple[int, int, int, int]
    lost_time: float
    floor: int
    floor_set: int
    size: int
    settings: dict[str, str]
    load_timeout: float
    graceful_timeout: float
    attempt: Attempt = Attempt()
    again: str = ""
    metrics: MetricsState | None = None
    pidfile: int | None = None
    watcher: int | None = None
    lot: LotState | None = None
    others: tuple[int, ...] = ()
    socket_files: dict[int, Identity] = {}
    metrics_dir: bytes | None = None
    leftovers: tuple[Leftover, ...] = ()
    folders: tuple[tuple[bytes, Identity], ...] = ()

    @property
    def fds(self) -> list[int]:
        """All descriptors that have to survive the exec."""
        metrics = [] if self.metrics is None else self.metrics.fds
        pidfile = [] if self.pidfile is None else [self.pidfile]
        lot = [] if self.lot is None else self.lot.fds
        sockets = [*self.listeners, *self.kept, *self.others]
        leftovers = [one.child.pidfd for one in self.leftovers]
        return [*self.pool.fds, *sockets, *self.wakeup, *metrics, *pidfile, *lot, *leftovers]

    @property
    def pids(self) -> set[int]:
        """The processes that this state has, besides the process itself."""
        pids = {one.child.pid for one in self.pool.workers}
        pids.update(one.child.pid for one in self.leftovers)
        if self.metrics is not None and self.metrics.child is not None:
            pids.add(self.metrics.child.pid)
        if self.lot is not None and self.lot.child is not None:
            pids.add(self.lot.child.pid)
        return pids

    def name_of(self, fd: int) -> SocketName:
        """Return the name of one of the sockets."""
        return msgspec.structs.replace(SocketName.of(fd), file=self.socket_files.get(fd))

    def write(self, memory: int) -> str:
        """Write the whole state into a memfd, and return the variable that leads to it.

        Raises HandoverError when a part of the state cannot be written, because of a limit or of
        low memory, and when it cannot be put into words.
        """
        try:
            left = memoryview(msgspec.json.encode(self))
            while left:  # a write can be short; the next one then says why
                left = left[os.write(memory, left) :]
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise HandoverError(
                f"the state for the new code cannot be written: {reason}"
            ) from error
        return f"{self.pid}:{memory}"

    @classmethod
    def read(cls, text: str) -> Self | None:
        """Return the state to which the variable leads, and close its memfd. text: its value.

        Return None if the variable is not for this process: a program that was started by the next
        image inherits it. Raises HandoverError if it is, and there is no state that can be read.
        """
        pid, _, memory = text.partition(":")
        if pid != str(os.getpid()):
            return None
        try:
            state = msgspec.json.decode(_content_of(int(memory)), type=cls)
        except (ValueError, OSError, msgspec.MsgspecError) as error:
            raise HandoverError(f"{STATE_VARIABLE}={text} leads to no state: {error}") from error
        if (state.pid, state.format) != (os.getpid(), FORMAT):
            raise HandoverError(
                f"{STATE_VARIABLE}={text} leads to a state of format {state.format} of process "
                f"{state.pid}; this is format {FORMAT} and process {os.getpid()}"
            )
        return state


class HandoverError(PreforkError):
    """The state cannot be handed over whole, or what was handed over cannot be read."""


def _content_of(memory: int) -> bytes:
    name = os.readlink(f"/proc/self/fd/{memory}")
    if not name.startswith(f"/memfd:{MEMFD_NAME}"):
        raise ValueError(f"descriptor {memory} is {name}")
    content = os.pread(memory, os.fstat(memory).st_size, 0)
    os.close(memory)
    return content


class Inventory(msgspec.Struct, frozen=True):
    """What a master has, by name: a trial must do without it, and must not take it.

    sockets: those that the new code's servers would take by their address.
    kept: descriptors of sockets that the program knows by their number; a trial has these.
    others: those that the program has bound beside the pool.
    endpoints: the addresses of the metrics process, by the key of the setting.
    pidfile: device and inode of the pid file; None without one.
    files: the files that the trial must leave alone, by device and inode.
    metrics_dir: the folder in which the application's metrics are kept by slot; bytes, because a
    path need not be UTF-8.
    """

    sockets: tuple[SocketName, ...]
    kept: tuple[int, ...] = ()
    endpoints: dict[str, str] = {}
    pidfile: Identity | None = None
    others: tuple[SocketName, ...] = ()
    files: tuple[Identity, ...] = ()
    metrics_dir: bytes | None = None


class TrialOrders(msgspec.Struct, frozen=True):
    """What makes a process a trial.

    master_pid: of the master that has started the trial. report_to: the descriptor of the memfd for
    its report.
    """

    master_pid: int
    report_to: int
    inventory: Inventory

    @classmethod
    def read(cls, text: str) -> Self | None:
        """Return the orders in the text; None where they are not for this process."""
        with contextlib.suppress(msgspec.MsgspecError, OSError):
            orders = msgspec.json.decode(text, type=cls)
            os.set_inheritable(orders.report_to, False)
            if os.readlink(f"/proc/self/fd/{orders.report_to}").startswith("/memfd:prefork-trial"):
                return orders
        return None
