"""What this process is: one object, ``process``, which is made when prefork is imported.

A program that uses prefork runs in one of three situations, and its own code is the same in all:

- A user or a service manager has started it.
- It is the next image of a master: the same process after an exec in place
  (prefork/reloading/exec.py). Until its master has adopted the workers, their state is in
  ``process.handover``.
- It is a trial, a child in which a master loads new code to see whether it would serve
  (prefork/reloading/trial.py). Then ``process.is_trial`` is true, and it must take nothing that is
  the master's.

The environment and the inherited descriptors tell which. They are read at import, before code of
the program runs: the program may change its folder and its environment, start other programs that
would inherit the variables, or close a descriptor and open another file under the same number.

The object also keeps what a master of this process must hand over one day and other parts of
prefork make: the pid file and the watcher of ``prefork run --watch``. Everything here belongs to
this process alone: a child that the program forks is none of the three, and forgets it.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import logging
import os
import sys
from collections.abc import Callable, MutableMapping
from typing import Final, Self

import msgspec

from prefork.host.handover import (
    STATE_VARIABLE,
    TRIAL_VARIABLE,
    HandoverError,
    Inventory,
    MasterState,
    TrialOrders,
)
from prefork.host.named_socket import SocketName
from prefork.host.systemd_sockets import SystemdSockets, handed_over
from prefork.workers import forks, log, system
from prefork.workers.files import has_proc, identity_of, unlink_if_still

Adoptable = tuple[SocketName, int | None]
"""A socket that new code may take by its name, with its descriptor. A trial has none."""


class Program(msgspec.Struct, frozen=True):
    """How the program of this process was started, so that it can be started again.

    arguments: of the interpreter. folder: the working directory, None where it was removed.
    environment: without the variables by which prefork hands something over.
    """

    arguments: tuple[str, ...]
    folder: str | None
    environment: dict[str, str]

    @classmethod
    def of_this_process(cls, environ: MutableMapping[str, str]) -> Self:
        """Return what is so now."""
        folder = None
        with contextlib.suppress(OSError):
            folder = os.getcwd()
        ours = (STATE_VARIABLE, TRIAL_VARIABLE)
        environment = {key: value for key, value in environ.items() if key not in ours}
        return cls(tuple(sys.orig_argv[1:]), folder, environment)

    @property
    def command(self) -> list[str]:
        """The interpreter and its arguments."""
        return [sys.executable, *self.arguments]

    def why_not_again(self) -> str:
        """Return why the program cannot be started again; "" when it can."""
        if self.folder is None or not os.path.isdir(self.folder):
            return "the folder that it was started in is gone"
        if not has_proc():
            return "/proc is not mounted, and new code finds the state of its master there"
        if not sys.executable:
            return "the interpreter is unknown"
        if not self.arguments or self.arguments[0] == "-":
            return "the program was read from standard input"
        return ""


class Process:
    """What this process is, and what it was given. environ: loses the variables that are read."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        self.program: Final = Program.of_this_process(environ)
        self.trial: Final = _orders_in(environ)
        """What makes this process a trial; None in every other one."""
        self.handover: MasterState | None = _state_in(environ)
        """What an earlier image of this master has left, until a master has adopted it."""
        # systemd names the process that it has started. A trial is a child of that one.
        pids = {os.getpid()} if self.trial is None else {os.getpid(), os.getppid()}
        self.systemd_sockets: Final = SystemdSockets(handed_over(self.program.environment, pids))
        self.pidfile: int | None = None
        """The descriptor that holds the lock on this process's pid file."""
        self.watcher: int | None = None
        """The pid of the child that watches the source files."""
        self._pid: Final = os.getpid()
        self._children_before: frozenset[int] = frozenset(
            system.children() if self.handover else ()
        )
        self._children_of_program: frozenset[int] = frozenset()
        self._adoptable = _adoptable_sockets(self.handover, self.trial)
        self._others = _other_sockets(self.handover, self.trial)
        self._when_taken_over: list[Callable[[], None]] = []
        self._duplicates = _duplicates_of_kept(self.handover)
        self._at_end: list[Callable[[], None]] = [self._close_duplicates]
        forks.add(self._forget, every_time=True)

    @property
    def is_trial(self) -> bool:
        """Whether this process only tries the program, while its master serves."""
        return self.trial is not None

    @property
    def inventory(self) -> Inventory | None:
        """What the master of this trial has; None in a process that is no trial."""
        return None if self.trial is None else self.trial.inventory

    @property
    def is_child_of_program(self) -> bool:
        """Whether this process is a child that the program has made of itself.

        A daemon that forks twice is one, and so is each process of ``multiprocessing``. To run the
        program again in such a process would run all of it, from its beginning: the parent's part,
        with a further child that serves.
        """
        started = sys.modules.get("multiprocessing.process")
        return (
            self._pid != os.getpid()
            or system.is_fork()  # also where prefork was imported after the fork
            or getattr(started, "_parent_process", None) is not None
        )

    def why_not_again(self) -> str:
        """Return why the program cannot be run again in this process; "" when it can."""
        if self.is_child_of_program:
            return (
                "the pool serves in a child of the program that was started, and to run the "
                "program again would not lead here; restart the program"
            )
        return self.program.why_not_again()

    # --- what the program has started

    def note_children(self) -> None:
        """Note which children the program has started, before the first worker is forked."""
        self._children_of_program = frozenset(system.children()) - self._children_before

    def is_of_program(self, pid: int) -> bool:
        """Return whether the program of this image has started this child.

        Orphans of other processes may become children of this one, such as those that handlers have
        left. Then only the children that were there before the first worker are known to be the
        program's.
        """
        return pid in self._children_of_program or not system.is_init()

    # --- sockets that wait for a server

    @property
    def has_adoptable_sockets(self) -> bool:
        """Whether there are sockets that a server of this program may take by their address."""
        return bool(self._adoptable)

    def claim(
        self, family: int, kind: int, asked: object, *, any_port: bool = True
    ) -> Adoptable | None:
        """Take the adoptable socket for an address; None where there is none.

        Returns its name and its descriptor, of which the caller makes a duplicate
        (``release_claimed()``). A trial has no descriptor of it. any_port: whether port
        0 takes any socket of a server. For a socket that the program has bound beside the pool, the
        port has to be named.
        """
        for sockets, any_of_them in ((self._adoptable, any_port), (self._others, False)):
            for adoptable in sockets:
                if adoptable[0].fits(family, kind, asked, any_port=any_of_them):
                    sockets.remove(adoptable)
                    return adoptable
        return None

    def release_claimed(self, fd: int) -> None:
        """Have the descriptor of a claimed socket closed when it is needed no more."""
        self.close_after_handover(functools.partial(os.close, fd))

    def unclaimed(self) -> list[tuple[SocketName, int]]:
        """Return the sockets of servers that no server has claimed. They wait no longer."""
        unclaimed, self._adoptable = self._adoptable, []
        return [(name, fd) for name, fd in unclaimed if fd is not None]

    # --- the end of a handover

    def close_after_handover(self, close: Callable[[], None]) -> None:
        """Have something closed that an earlier image has left and that this one does not need.

        If this image fails before it has adopted everything, the next attempt needs it again. So it
        stays open while a handover is pending; otherwise it is closed at once.
        """
        if self.handover is None:
            close()
        else:
            self._at_end.append(close)

    def restore_kept(self) -> None:
        """Have each socket that a program knows by its number under that number again.

        New code has closed such a socket if it closed its servers before it ended. A socket that it
        knows by its address it has got as a duplicate (prefork/reloading/sockets.py).
        """
        for fd, duplicate in self._duplicates.items():
            os.dup2(duplicate, fd, inheritable=False)

    def end_handover(self) -> None:
        """Note that nothing waits to be adopted any more: a master has it all in hand, or stops it.

        What was kept for another attempt is closed. A pid file that this image does not hold,
        because the new settings do not name it, is removed.
        """
        previous, self.handover = self.handover, None
        at_end, self._at_end = self._at_end, []
        for close in at_end:
            close()
        if previous is not None and previous.pidfile not in (None, self.pidfile):
            _remove_pidfile(previous.pidfile)

    # --- the end of the roll

    def call_when_taken_over(self, end: Callable[[], None]) -> None:
        """Have a function called when the program can ask for no more sockets of the old image."""
        self._when_taken_over.append(end)

    def end_takeover(self) -> None:
        """Close the sockets of the old image that the program has bound no more; may be called again.

        The workers of the old image have copies of these sockets. As long as these workers live, the
        addresses are in use, and the program gets the sockets instead.
        """
        with forks.lock:
            others, self._others = self._others, []
            for _, fd in others:
                if fd is not None:
                    os.close(fd)
        while self._when_taken_over:
            self._when_taken_over.pop()()

    def _forget(self) -> None:
        # A child forked while the state is pending would end by taking care of workers that are
        # not its own, and its copies of the descriptors would hide the master's death.
        previous, self.handover = self.handover, None
        self.pidfile = self.watcher = None
        inherited = {fd for _, fd in self._others if fd is not None}
        if previous is not None:
            self._adoptable, self._at_end = [], []
            inherited.update(previous.fds, self._duplicates.values())
        if self.trial is None:
            self._others = []
            while self._when_taken_over:
                self._when_taken_over.pop()()
        forks.close(inherited)

    def _close_duplicates(self) -> None:
        for duplicate in self._duplicates.values():
            os.close(duplicate)
        self._duplicates = {}


def _orders_in(environ: MutableMapping[str, str]) -> TrialOrders | None:
    text = environ.pop(TRIAL_VARIABLE, None)
    return None if text is None else TrialOrders.read(text)


def _state_in(environ: MutableMapping[str, str]) -> MasterState | None:
    text = environ.pop(STATE_VARIABLE, None)
    if text is None:
        return None
    state = MasterState.read(text)
    if state is None:
        log.event(
            logging.WARNING, "master", f"{STATE_VARIABLE} is ignored: it is not for this process"
        )
        return None
    # Programs that the application starts while it is loaded must not get them.
    for fd in state.fds:
        os.set_inheritable(fd, False)
    return state


def _adoptable_sockets(state: MasterState | None, orders: TrialOrders | None) -> list[Adoptable]:
    if state is not None:
        return [(state.name_of(fd), fd) for fd in state.listeners]
    if orders is not None:
        return [(name, None) for name in orders.inventory.sockets]
    return []


def _other_sockets(state: MasterState | None, orders: TrialOrders | None) -> list[Adoptable]:
    if state is not None:
        return [(state.name_of(fd), fd) for fd in state.others]
    if orders is not None:
        return [(name, None) for name in orders.inventory.others]
    return []


def _duplicates_of_kept(state: MasterState | None) -> dict[int, int]:
    if state is None:
        return {}
    return {fd: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in state.kept}


def _remove_pidfile(fd: int) -> None:
    with contextlib.suppress(OSError):
        unlink_if_still(os.readlink(f"/proc/self/fd/{fd}"), identity_of(fd))
    os.close(fd)


def _this_process() -> Process:
    """Return what this process is, or end it where an earlier image has left what cannot be read.

    There is nothing that could be done for the workers of that image then, because their
    descriptors are unknown. If this process went on, they would serve without a master, and the
    program would try to bind addresses that it has itself. So it ends: its workers finish their
    requests and leave, and whatever supervises the service starts it again. An exception would not
    do, because the program could catch it.
    """
    try:
        return Process(os.environ)
    except HandoverError as error:
        log.event(
            logging.CRITICAL, "master", "cannot go on after the exec, ends", reason=str(error)
        )
        system.exit_now(1)


process: Final = _this_process()
"""This process."""


def on_trial() -> bool:
    """Return whether this process only tries new code, while the pool that it would join serves.

    A reload runs the program in a child first, up to ``serve_forever()``. What the child must not do
    a second time beside the live process, such as to start a helper or to send a message, the
    program leaves out there.
    """
    return process.is_trial
