"""The table of slots and handles; the hands that carry out a plan (master)."""

from __future__ import annotations

import contextlib
import functools
import grp
import itertools
import logging
import os
import pwd
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from prefork.workers import log, system
from prefork.workers.bootstrap import (
    Credentials,
    Crew,
    WorkerInfo,
    WorkerSide,
    run_worker,
)
from prefork.workers.errors import SettingsError
from prefork.workers.handle import Handle
from prefork.workers.listener import Listener
from prefork.workers.policy import (
    BOOT_BACKOFF_CAP,
    FORK_BACKOFF_CAP,
    Kill,
    Plan,
    Retirement,
    WorkerView,
    backoff,
)
from prefork.workers.scoreboard import PoolField, Scoreboard, SlotField
from prefork.workers.settings import Settings
from prefork.workers.states import (
    ExitCause,
    ExitKind,
    ExitStatus,
    Order,
    Phase,
    StartReason,
    WorkerState,
    cause_of_exit,
)

_pools_here: list[Pool] = []
"""Every running pool of this process, so that a worker of one closes what is the others'."""

changing_pools = threading.RLock()
"""Held while a pool is made or a worker is forked: a worker must not be forked from half a pool."""


def _close_masters_fds_in_child() -> None:
    # In every child of this process, also one that the program forked for itself: it would keep
    # the life pipe open and hide the master's death from the workers.
    global changing_pools  # noqa: PLW0603 - held, perhaps by a thread that does not exist here
    changing_pools = threading.RLock()
    for pool in _pools_here:
        pool._close_masters_fds()  # noqa: SLF001 - it is of this module


os.register_at_fork(after_in_child=_close_masters_fds_in_child)


class Pool:
    """The workers of one scoreboard. Every method runs in the master, in the thread that serves."""

    def __init__(
        self,
        settings: Settings,
        listeners: list[Listener],
        *,
        hooks: Callable[..., Any],
        enter: Callable[[WorkerSide], None],
        title: tuple[str, str],
        wake: int,
        private_fds: Callable[[], list[int]],
    ) -> None:
        credentials = _credentials(settings)
        self.settings = settings
        self.board = Scoreboard.create(settings.max_children)
        self.handles: dict[int, Handle] = {}
        self._bells: dict[int, int] = {}
        self._let_go = False
        """In a child: whether it has closed what is the master's."""
        self.retry_at = 0.0
        self.probing = False
        self.boot_failures = 0
        self.boot_error = False
        """Whether the last worker that died before it was ready did so by its own code."""
        self.ever_ready = False
        self.last_report = ""
        self._hooks = hooks
        self._fork_failures = 0
        self._truncated_seen = 0
        self._private_fds = private_fds
        self._life_read, self._life_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._exits = select.epoll()
        self._crew = Crew(
            board=self.board,
            listeners=listeners,
            life=self._life_read,
            wake=wake,
            master_pid=os.getpid(),
            credentials=credentials,
            umask=settings.umask,
            title=title,
            hooks=hooks,
            enter=enter,
            shed=self._shed_in_worker,
        )
        _pools_here.append(self)

    def __repr__(self) -> str:
        states = [self.board.state(slot).name.lower() for slot in sorted(self.handles)]
        counts = {state: states.count(state) for state in dict.fromkeys(states)}
        return f"<Pool {len(self.handles)}/{self.settings.max_children} {counts}>"

    @property
    def pids(self) -> set[int]:
        """The pids of the live workers."""
        return {handle.info.pid for handle in self.handles.values()}

    def fileno(self) -> int:
        """Return a descriptor that is readable when a worker has ended."""
        return self._exits.fileno()

    def close(self) -> None:
        """Give everything back; no worker is left by now."""
        with changing_pools:
            _pools_here.remove(self)
            self._exits.close()
            os.close(self._life_read)
            os.close(self._life_write)
            self.board.close()

    def views(self) -> tuple[WorkerView, ...]:
        """Return the workers as the policy sees them."""
        return tuple(handle.view(self.board.state(slot)) for slot, handle in self.handles.items())

    def call_hook(self, name: str, *arguments: object) -> None:
        """Call a hook of the leading server; one that raises is logged and counted."""
        try:
            self._hooks(name, *arguments)
        except Exception as error:  # noqa: BLE001 - a hook never stops supervision
            self.board.count_pool(PoolField.HOOK_FAILURES)
            log.failure(logging.ERROR, "master", f"{name}() raised", error)

    # --- carrying out a plan

    def apply(self, plan: Plan, now: float) -> None:
        """Do what the policy decided."""
        for kill in plan.kill:
            self._kill(kill)
        for slot in plan.dump:
            self._dump_before_kill(self.handles[slot], now)
        for slot in plan.poke:
            self.handles[slot].ring()
        for retirement in plan.retire:
            self._retire(retirement, plan.phase)
        if plan.spawn:
            self._spawn(plan.spawn, now)

    def _spawn(self, count: int, now: float) -> None:
        free = (slot for slot in range(self.settings.max_children) if slot not in self.handles)
        slots = list(itertools.islice(free, count))
        for slot in slots:
            self.board.prepare_slot(slot, 0, time.monotonic_ns())
            self.call_hook("pre_fork", WorkerInfo(slot, 0, 0))
        with changing_pools:
            children, failure = self._fork(slots)
        for slot, child in zip(slots, children, strict=True):
            if child is not None:
                self._adopt(slot, child, now)
            elif slot in self._bells:
                os.close(self._bells.pop(slot))
        if failure is not None:
            self._note_fork_failure(failure, now)
        elif self._fork_failures:
            self._note_fork_success()

    def _fork(self, slots: list[int]) -> tuple[list[system.Child | None], OSError | None]:
        try:
            for slot in slots:
                self._bells[slot] = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError as error:
            return [None] * len(slots), error
        return system.fork_children(
            [
                functools.partial(run_worker, self._crew, slot, 0, self._bells[slot])
                for slot in slots
            ]
        )

    def _adopt(self, slot: int, child: system.Child, now: float) -> None:
        handle = Handle(WorkerInfo(slot, 0, child.pid), child, self._bells[slot], spawned_at=now)
        self.handles[slot] = handle
        self._exits.register(child.pidfd, select.EPOLLIN)
        self.board.occupy_slot(slot, child.pid, StartReason.STARTED)
        log.event(logging.DEBUG, str(handle), "spawned")

    def _note_fork_failure(self, error: OSError, now: float) -> None:
        self._fork_failures += 1
        self.board.count_pool(PoolField.SPAWN_FAILURES)
        self.retry_at = now + backoff(self._fork_failures, FORK_BACKOFF_CAP)
        self.probing = True
        if self._fork_failures == 1:
            log.event(
                logging.ERROR,
                "master",
                "cannot fork, goes on trying",
                error=error,
                workers=len(self.handles),
            )

    def _note_fork_success(self) -> None:
        log.event(logging.WARNING, "master", "forks again", failures=self._fork_failures)
        self._fork_failures = 0
        self.probing = self.boot_failures > 0

    def _retire(self, retirement: Retirement, phase: Phase) -> None:
        handle = self.handles[retirement.slot]
        handle.asked_for, handle.leave_by = retirement.cause, retirement.leave_by
        self.board.give_order(
            retirement.slot, Order.DRAIN if phase is Phase.DRAINING else Order.RETIRE
        )
        handle.ring()
        log.event(logging.DEBUG, str(handle), "asked to leave", cause=retirement.cause)

    def _kill(self, kill: Kill) -> None:
        handle = self.handles[kill.slot]
        self._show_dump(handle)
        handle.killed_for = kill.cause or handle.asked_for
        system.send(handle.child, signal.SIGKILL)
        log.event(logging.WARNING, str(handle), "killed", cause=handle.killed_for)

    def kill_all(self, now: float) -> None:
        """Kill and collect whatever is left, waiting for it: the last resort of a master that fails."""
        for handle in self.handles.values():
            handle.killed_for = handle.asked_for or ExitCause(ExitKind.RETIRED)
            system.send(handle.child, signal.SIGKILL)
        for handle in self.handles.values():
            system.wait_for_end(handle.child)
        self.reap(now)

    def _dump_before_kill(self, handle: Handle, now: float) -> None:
        handle.dumped_at = now
        self._ask_dump(handle)

    # --- stack dumps

    def ask_dumps(self) -> None:
        """Have every worker write its stacks; ``show_dumps`` puts them into the log a moment later."""
        for handle in self.handles.values():
            if handle.ready_at is not None:
                self._ask_dump(handle)

    def _ask_dump(self, handle: Handle) -> None:
        self.board.clear_report(handle.info.slot)
        handle.dump_shown = False
        system.send(handle.child, signal.SIGUSR1)

    def show_dumps(self) -> None:
        """Log the stack dumps that were asked for and have not been shown."""
        for handle in self.handles.values():
            self._show_dump(handle)

    def _show_dump(self, handle: Handle) -> None:
        if not handle.dump_shown:
            handle.dump_shown = True
            state = self.board.state(handle.info.slot).name.lower()
            stacks = self._report(handle.info.slot)
            handle.ring()
            log.event(
                logging.WARNING, str(handle), "stacks", state=state, report=stacks or "(no answer)"
            )

    def _report(self, slot: int) -> str:
        return _without_masters_frames(_printable(self.board.report(slot)))

    # --- watching

    def reap(self, now: float) -> None:
        """Collect the workers that have ended, and no other process."""
        ended = {fd for fd, _ in self._exits.poll(0)}
        if not ended:
            return
        # All are taken off the table before the first hook runs, which may call this again.
        for handle, status in [*self._take_off_the_table(ended)]:
            cause = cause_of_exit(
                status,
                asked=handle.asked_for,
                killed_for=handle.killed_for,
                was_ready=self._is_ready(handle, now),
            )
            self._bury(handle, cause, now)

    def _take_off_the_table(self, ended: set[int]) -> Iterator[tuple[Handle, ExitStatus]]:
        for slot, handle in list(self.handles.items()):
            pidfd = handle.child.pidfd
            if pidfd in ended and (status := system.collect(handle.child)) is not None:
                self._exits.unregister(pidfd)
                os.close(pidfd)
                os.close(self._bells.pop(slot))
                del self.handles[slot]
                yield handle, status

    def _bury(self, handle: Handle, cause: ExitCause, now: float) -> None:
        slot = handle.info.slot
        report = "" if handle.ready_at is not None else self._report(slot)
        age = now - handle.spawned_at
        self.board.vacate_slot(slot, cause.kind, time.monotonic_ns())
        wanted = cause.kind in (ExitKind.RETIRED, ExitKind.SCALED_DOWN)
        level = logging.INFO if wanted else logging.ERROR
        log.event(level, str(handle), "exited", cause=cause, age=age, report=report)
        if handle.ready_at is None and handle.asked_for is None:
            self.boot_error = cause.kind is ExitKind.BOOT_ERROR
            self._note_boot_failure(report or f"{handle} exited: {cause}", now)
        self.call_hook("worker_died", handle.info, cause)

    def _note_boot_failure(self, report: str, now: float) -> None:
        self.boot_failures += 1
        self.last_report = report
        self.retry_at = now + backoff(self.boot_failures, BOOT_BACKOFF_CAP)
        self.probing = True

    def note_ready(self, now: float) -> None:
        """Find the workers that have become ready since the last tick."""
        for handle in list(self.handles.values()):
            if handle.ready_at is None and self._is_ready(handle, now):
                self.board.note_ready(handle.info.slot, time.monotonic_ns())
                log.event(logging.INFO, str(handle), "ready", boot=now - handle.spawned_at)
                self.ever_ready = True
                self.boot_failures = 0
                self.probing = self._fork_failures > 0
                self.call_hook("worker_ready", handle.info)

    def _is_ready(self, handle: Handle, now: float) -> bool:
        # The worker's own word, not that of its slot as a whole: one asked to leave early was ready too.
        state = self.board.word(handle.info.slot, SlotField.STATE)
        if handle.ready_at is None and state != WorkerState.STARTING:
            handle.ready_at = now
        return handle.ready_at is not None

    def count_ready(self) -> int:
        """Return how many workers are ready and staying."""
        return sum(
            handle.ready_at is not None and handle.leave_by is None
            for handle in self.handles.values()
        )

    def note_truncated(self) -> None:
        """Log the first datagram that was longer than ``max_packet_size``; the counter tells the rest."""
        if not self._truncated_seen:
            self._truncated_seen = self.board.total(SlotField.TRUNCATED)
            if self._truncated_seen:
                log.event(
                    logging.WARNING,
                    "master",
                    "a datagram was longer than max_packet_size and was cut; further ones are only counted",
                )

    def note_threads(self) -> None:
        """Say in plain words what a master with threads means for its workers."""
        expected = (threading.current_thread(), threading.main_thread())
        others = [thread for thread in threading.enumerate() if thread not in expected]
        if others:
            log.event(
                logging.WARNING,
                "master",
                "has other threads; they do not exist in the workers, and a lock that one of them holds "
                "at a fork stays locked there: start threads in worker_init()",
                threads=", ".join(thread.name for thread in others),
            )

    # --- in a worker just forked

    def _shed_in_worker(self, slot: int) -> None:
        for other_slot, bell in self._bells.items():
            if other_slot != slot:
                os.close(bell)
        for pool in _pools_here:
            if pool is not self:
                pool._close_workers_fds()  # noqa: SLF001 - it is of this class
        _pools_here.clear()

    def _close_masters_fds(self) -> None:
        if self._let_go:
            return  # a child's child: the numbers may be other files' by now
        self._let_go = True
        pidfds = [handle.child.pidfd for handle in self.handles.values()]
        self._exits.close()
        for fd in [*pidfds, self._life_write, *self._private_fds()]:
            with contextlib.suppress(OSError):
                os.close(fd)

    def _close_workers_fds(self) -> None:
        for fd in (self._life_read, self._crew.wake, *self._bells.values()):
            os.close(fd)
        self.board.close()


def _credentials(settings: Settings) -> Credentials | None:
    """Look up whom workers run as; refuse what this process may not become."""
    if settings.user is None and settings.group is None:
        return None
    group = settings.group
    if isinstance(group, str):
        group = grp.getgrnam(group).gr_gid
    name, uid, gid = _user(settings.user, group)
    if os.geteuid() != 0:
        if (uid, gid) == (os.geteuid(), os.getegid()):
            return None
        key = "user" if settings.user is not None else "group"
        raise SettingsError(
            key,
            getattr(settings, key),
            "settings",
            "only root can give its workers another identity",
        )
    groups = os.getgrouplist(name, gid) if name is not None else [gid]
    return Credentials(uid, gid, tuple(groups))


def _user(user: str | int | None, group: int | None) -> tuple[str | None, int, int]:
    """Return name, uid and gid; a bare uid that no account has needs the group, or it would keep root's."""
    if user is None:
        return None, os.geteuid(), os.getegid() if group is None else group
    try:
        entry = pwd.getpwuid(user) if isinstance(user, int) else pwd.getpwnam(user)
    except KeyError:
        if group is None or isinstance(user, str):
            raise SettingsError(
                "user", user, "settings", "a user of this machine; a bare uid needs the group, too"
            ) from None
        return None, user, group
    return entry.pw_name, entry.pw_uid, entry.pw_gid if group is None else group


def _printable(report: str) -> str:
    """Escape a report line by line: its bytes are a worker's."""
    return "\n".join(
        "".join(c if c.isprintable() else "\ufffd" for c in line) for line in report.splitlines()
    )


def _without_masters_frames(report: str) -> str:
    """Cut what lies below the worker's first frame in a stack dump; the traceback of a boot stays whole."""
    end = report.find(f" in {run_worker.__name__}\n")
    if end < 0 or "(most recent call first)" not in report[:end]:
        return report
    return report[: end + len(run_worker.__name__) + 4]
