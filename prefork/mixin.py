"""PreForkingMixIn: the contract of ``socketserver`` on one side, the Master on the other."""

from __future__ import annotations

import contextlib
import logging
import os
import reprlib
import threading
import weakref
from socketserver import BaseServer
from typing import TYPE_CHECKING, Any, ClassVar, Self

import msgspec
import setproctitle

from prefork import activation, adoption, handover, rehearsal
from prefork.endpoint import Endpoint, is_same_place
from prefork.master import Master
from prefork.metrics import slots
from prefork.signals import Wakeup
from prefork.workers import log, pool
from prefork.workers.errors import SettingsError
from prefork.workers.listener import Listener
from prefork.workers.settings import Settings, from_attributes
from prefork.workers.threads import refuse_threads

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefork.workers.bootstrap import ThisWorker, WorkerInfo, WorkerSide
    from prefork.workers.states import ExitCause


handover.accept_legacy()
_estate = adoption.estate_of_this_process()


_servers_here: weakref.WeakValueDictionary[int, PreForkingMixIn] = weakref.WeakValueDictionary()
"""Every server of this process, so that a worker of one does not keep the sockets of the others open."""


class _Run:
    """One server's serving: whether it runs, who runs it, and who waits for its end."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.stopped = threading.Event()
        self.shutdown_asked = False
        self.master: Master | None = None
        self.running = False
        self.thread: int | None = None
        self.close_at_end = False
        self.without_workers = False
        self.listener: Listener | None = None


class PreForkingMixIn(BaseServer if TYPE_CHECKING else object):  # type: ignore[misc]
    """Mix-in that serves each request in one of a bounded pool of worker processes.

    Put it in front of any ``socketserver`` server class and keep the handlers. The workers are
    forked in ``serve_forever()``, share the server's socket and run its synchronous handlers in
    a loop. It has no ``__init__``; it is configured by class or instance attributes, which are
    read when ``serve_forever()`` begins.

    Methods for the caller: those of the server class; ``serve_forever()``, ``shutdown()``,
    ``server_close()`` mean what they mean there.

    Methods that may be overridden: the server class's, which run in the workers
    (``get_request()`` to ``close_request()``, ``handle_error()``), and the hooks below;
    ``service_actions()`` and ``server_close()`` may be extended, call ``super()``.
    """

    workers: int | str = "auto"
    max_children: int = 40
    min_spare: int | None = None
    max_spare: int | None = None
    max_requests: int | None = None
    max_lifetime: float | str | None = None
    max_memory: int | str | None = None
    jitter: float | str = 0.1
    request_timeout: float | str | None = None
    slow_request: float | str | None = None
    client_timeout: float | str | None = None
    defer_accept: float | str | None = None
    crash_loop: str = "retry"
    fork_check: str = "warn"
    boot_timeout: float | str = 60.0
    graceful_timeout: float | str = 25.0
    drain_delay: float | str = 0.0
    metrics_address: str | None = None
    metrics_dir: str | None = None
    access_log: str = "off"
    umask: int | str | None = None
    pool_name: str | None = None
    run_as_user: str | int | None = None
    run_as_group: str | int | None = None

    block_on_close: bool = True
    """Whether ``server_close()`` from another thread waits until the workers are gone."""

    listener_inherited: bool = False
    """Set it where another process holds the server's socket, too (a supervisor's, say).

    A stop by signal then leaves the socket and its queue to that process; otherwise it would
    refuse new clients for everybody who has the socket.
    """

    active_children: set[int] | None = None
    """The pids of the live workers; None before the first ``serve_forever()`` and in a worker."""

    _prefork_run: ClassVar[Any] = None
    _prefork_side: ClassVar[Any] = None

    def __new__(cls, *_args: Any, **_kwargs: Any) -> Self:
        """Make the server known to this process; there is no ``__init__`` that everybody would call."""
        server: Self = super().__new__(cls)
        _servers_here[id(server)] = server
        if _estate is not None:
            _estate.prepare(server)
        return server

    # --- what a handler can ask

    @property
    def worker(self) -> ThisWorker | None:
        """The worker this is running in (slot, generation, pid, extend_deadline()), None in the master."""
        side: WorkerSide | None = self._prefork_side
        return side.info if side is not None else None

    @property
    def stopping(self) -> bool:
        """Whether this worker has been asked to leave; a long handler may want to finish early."""
        side: WorkerSide | None = self._prefork_side
        return side is not None and side.stopping

    # --- the contract of socketserver

    def serve_forever(self, poll_interval: float | None = 0.5) -> None:
        """Serve with a pool of workers until ``shutdown()`` or a signal; runs the master here.

        In the main thread it handles the signals of docs/SIGNALS.md and puts the program's
        handlers back when it returns: after TERM it returns, after INT it raises
        KeyboardInterrupt, both after a graceful stop. In any other thread it touches no signal.

        poll_interval: seconds between two calls of ``service_actions()`` at the most.
        Raises SettingsError before anything is forked, BootError when no worker can boot.
        """
        serve(self, poll_interval=poll_interval)

    def shutdown(self) -> None:
        """Stop ``serve_forever()`` gracefully and wait until it has stopped.

        From another thread of the master's process; called before ``serve_forever()``, it waits
        for it and makes it return at once. In a worker's handler it asks the master and returns.
        """
        side: WorkerSide | None = self._prefork_side
        if side is not None:
            side.ask_shutdown()
            return
        run = _run_of(self)
        _ask_shutdown(run)
        if run.without_workers:
            super().shutdown()
        run.stopped.wait()

    def service_actions(self) -> None:
        """Collect dead workers; called by the master's loop at least every ``poll_interval``.

        May be extended for periodic work in the master. An exception leaves ``serve_forever()``
        after the workers are gone.
        """
        super().service_actions()
        self.collect_children()

    def collect_children(self, *, blocking: bool = False) -> None:
        """Collect the workers that have ended, and no other child of this process.

        blocking: taken as ``ForkingMixIn`` has it, and never waits: the workers of a pool do not
        end by themselves, and ``serve_forever()`` returns only after the last one. In a worker
        this is the server class's own ``collect_children()``, if it has one.
        """
        if self._prefork_side is not None:
            inherited = getattr(super(), "collect_children", None)
            if inherited is not None:
                inherited(blocking=blocking)
            return
        master = _run_of(self).master
        if master is not None:
            master.collect()

    def server_close(self) -> None:
        """Close the server; when another thread is serving, stop the pool first.

        With ``block_on_close`` it returns when no worker is left, without it at once.
        """
        run = _run_of(self)
        served_elsewhere = run.running and run.thread != threading.get_ident()
        if self._prefork_side is None and served_elsewhere:
            # Closed under the feet of a running master, the number would soon be another file's.
            run.close_at_end = True
            _ask_shutdown(run)
            if self.block_on_close:
                run.stopped.wait()
            return
        super().server_close()

    # --- hooks

    def when_ready(self) -> None:
        """Do something once the first workers are ready (master)."""

    def pre_fork(self, worker: WorkerInfo) -> None:
        """Do something before a worker is forked; its pid is 0 yet (master)."""

    def worker_init(self, worker: WorkerInfo) -> None:
        """Set up a worker before its first request; an exception is a boot failure (worker)."""

    def worker_ready(self, worker: WorkerInfo) -> None:
        """Learn that a worker serves (master)."""

    def worker_exit(self, worker: WorkerInfo, cause: ExitCause) -> None:
        """Clean up after a worker's last request; not called when it is killed (worker)."""

    def worker_died(self, worker: WorkerInfo, cause: ExitCause) -> None:
        """Learn that a worker has ended, and why (master)."""

    def pool_resized(self, old: int, new: int, why: str) -> None:
        """Learn that the number of workers to keep has changed (master)."""

    def on_reload(self) -> None:
        """Do something before the program is run again in this process; its new code was tried (master)."""

    def on_exit(self) -> None:
        """Do something when the pool has stopped (master)."""


def serve(
    *servers: PreForkingMixIn, settings: Settings | None = None, poll_interval: float | None = 0.5
) -> None:
    """Serve several servers, of whatever kinds and handlers, with one pool of workers.

    The first one leads: its attributes are the pool's settings (unless ``settings`` are given)
    and its hooks and ``service_actions()`` are called. ``shutdown()`` of any of them stops the
    pool. Otherwise as ``PreForkingMixIn.serve_forever()``.
    """
    if not servers:
        raise TypeError("serve() needs at least one server")
    for server in servers:
        if not isinstance(server, PreForkingMixIn):
            raise TypeError(
                f"serve() cannot serve {reprlib.repr(server)}: give it servers whose classes have "
                "PreForkingMixIn, as in serve(first, second)"
            )
    leader = servers[0]
    if settings is None:
        settings = from_attributes(leader)
    if (heritage := rehearsal.heritage()) is not None:
        _refuse_what_cannot_follow(settings, heritage)
        rehearsal.end_of_trial(settings)
    activation.take()
    runs = [_run_of(server) for server in servers]
    _begin(runs)
    try:
        if not any(run.shutdown_asked for run in runs):
            if settings.workers == 0:
                _serve_without_workers(servers, runs, poll_interval)
            else:
                with contextlib.closing(_lease(settings)) as user_metrics:
                    _serve_with_pool(servers, runs, settings, poll_interval, user_metrics)
    finally:
        for server, run in zip(servers, runs, strict=True):
            run.running = run.shutdown_asked = False
            if run.close_at_end:
                run.close_at_end = False
                super(PreForkingMixIn, server).server_close()
            run.stopped.set()


def _begin(runs: list[_Run]) -> None:
    for number, run in enumerate(runs):
        with run.lock:
            if run.running:
                for begun in runs[:number]:
                    begun.running = False
                    begun.stopped.set()
                raise RuntimeError("this server is already serving")
            run.running = True
            run.thread = threading.get_ident()
            run.stopped.clear()


def _serve_without_workers(
    servers: tuple[PreForkingMixIn, ...], runs: list[_Run], poll_interval: float | None
) -> None:
    """Serve in this process, so that a debugger sees the handler."""
    if len(servers) > 1:
        raise SettingsError(
            "workers", 0, "settings", "0 serves a single server; give it one, or some workers"
        )
    runs[0].without_workers = True
    try:
        super(PreForkingMixIn, servers[0]).serve_forever(
            0.5 if poll_interval is None else poll_interval
        )
    finally:
        runs[0].without_workers = False


def _serve_with_pool(
    servers: tuple[PreForkingMixIn, ...],
    runs: list[_Run],
    settings: Settings,
    poll_interval: float | None,
    user_metrics: slots.Lease,
) -> None:
    leader = servers[0]
    listeners = [_listener_of(server) for server in servers]
    legacy = handover.pending()
    if legacy is not None:
        settings = _fitting(settings, legacy)

    def publish_pids(pids: set[int]) -> None:
        for server in servers:
            server.active_children = pids

    with pool.changing_pools:
        wakeup = Wakeup(None if legacy is None else legacy.wakeup)
        try:
            master = Master(
                settings,
                listeners,
                wakeup=wakeup,
                hooks=_hooks_of(leader, user_metrics),
                enter=_entrance_to(servers, user_metrics),
                title=_title(settings, listeners),
                service_actions=leader.service_actions,
                publish_pids=publish_pids,
                poll_interval=poll_interval,
                let_go=lambda: _let_go_of_others(()),
                metrics_dir=user_metrics.directory,
                legacy=legacy,
                abandoned=_abandoned(),
                settle=_settle,
            )
        except BaseException:
            if handover.pending() is None:
                wakeup.close()
            raise
    try:
        for run in runs:
            run.master = master
        if any(run.shutdown_asked for run in runs):
            master.ask_shutdown()
        master.run()
    finally:
        for run in runs:
            with run.lock:
                run.master = None
        # Where the new code has failed before it had everything in hand, the legacy stays whole.
        if handover.pending() is None:
            master.close()
            wakeup.close()


def _entrance_to(
    servers: tuple[PreForkingMixIn, ...], user_metrics: slots.Lease
) -> Callable[[WorkerSide], None]:
    """Return what a worker does to know itself as one, before anything of the program runs in it."""
    # ForkingMixIn behind: its children are the worker's to collect.
    chores = [
        server.collect_children
        for server in servers
        if hasattr(super(PreForkingMixIn, server), "collect_children")
    ]

    def enter(side: WorkerSide) -> None:
        user_metrics.enter(side.info.slot)
        for server in servers:
            server._prefork_side = side  # type: ignore[misc]  # noqa: SLF001 - the mix-in's own
            server.active_children = None
        for chore in chores:
            side.add_chore(chore)
        _let_go_of_others(servers)

    return enter


def _hooks_of(leader: PreForkingMixIn, user_metrics: slots.Lease) -> Callable[..., bool]:
    """Return what calls the hooks of the leading server, by name, and tells whether it is a hook of its own."""

    def call(name: str, *arguments: Any) -> bool:
        if name == "worker_died":
            user_metrics.vacate(arguments[0].slot)  # before the next worker has that slot
        hook = getattr(leader, name)
        hook(*arguments)
        return getattr(hook, "__func__", None) is not vars(PreForkingMixIn)[name]

    return call


def _lease(settings: Settings) -> slots.Lease:
    """Begin to keep the application's own metrics by slot, and say which ones come too late for that."""
    user_metrics = slots.lease(settings.metrics_dir, settings.max_children)
    if early := slots.made_before():
        log.event(
            logging.WARNING,
            "master",
            "these metrics were made before prefork.metrics.slots.enable() was called and "
            "are not kept by slot: call it before prometheus_client is imported",
            metrics=" ".join(early),
        )
    return user_metrics


def _refuse_what_cannot_follow(settings: Settings, heritage: rehearsal.Heritage) -> None:
    """In a trial, refuse settings with which the new code could not go on with what the master has."""
    if settings.workers == 0:
        allowed = "a pool that runs cannot go on without workers; restart it"
        raise SettingsError("workers", 0, "settings", allowed)
    refuse_threads(settings)
    wanted, has = settings.metrics, heritage.metrics
    if wanted is not None and (has is None or not is_same_place(wanted, has)):
        Endpoint(wanted).close()


def _fitting(settings: Settings, legacy: handover.Legacy) -> Settings:
    """Keep ``max_children`` as it was: it sizes the scoreboard, which goes on."""
    size = int(legacy.settings["max_children"])
    if settings.max_children == size:
        return settings
    log.event(
        logging.WARNING,
        "master",
        "keeps max_children until it is restarted",
        max_children=size,
        wanted=settings.max_children,
    )
    spare = settings.min_spare if settings.min_spare is None else min(settings.min_spare, size)
    return msgspec.structs.replace(
        settings, max_children=size, workers=min(settings.workers, size), min_spare=spare
    )


def _abandoned() -> list[Listener]:
    """Return the sockets of before that no server has asked for."""
    left = [] if _estate is None else _estate.give_up()
    return [Listener(adoption.Abandoned(fd)) for fd in left]  # type: ignore[arg-type]  # it has what a Listener needs


def _settle() -> None:
    if _estate is not None:
        _estate.settle()


def _let_go_of_others(servers: tuple[PreForkingMixIn, ...]) -> None:
    """In a worker, drop the sockets of servers that it does not serve.

    Their Python objects live on and would later close a stranger's descriptor, so the numbers
    stay taken, by /dev/null.
    """
    if len(_servers_here) == len(servers):
        return  # the usual case, in which the look below would copy some pages for each worker
    others = [server for server in _servers_here.values() if server not in servers]
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for other in others:
        with contextlib.suppress(Exception):  # not bound, closed, or without a descriptor
            os.dup2(null, other.fileno(), inheritable=False)
    os.close(null)


def _run_of(server: PreForkingMixIn) -> _Run:
    # No __init__ to make it in: many programs call TCPServer.__init__() directly.
    run: _Run = server.__dict__.setdefault("_prefork_run", _Run())
    return run


def _ask_shutdown(run: _Run) -> None:
    with run.lock:
        run.shutdown_asked = True
        if run.master is not None:
            run.master.ask_shutdown()


def _listener_of(server: PreForkingMixIn) -> Listener:
    run = _run_of(server)
    if run.listener is None or not run.listener.is_still(server.fileno()):
        run.listener = Listener(server)
    return run.listener


def _title(settings: Settings, listeners: list[Listener]) -> tuple[str, str]:
    """Return what stands before and after the slot in a worker's process title."""
    # Has setproctitle move the environment now, once, rather than in each worker (some 100 KiB).
    setproctitle.getproctitle()
    name = f" [{settings.name}]" if settings.name else ""
    return "prefork: worker ", f"{name} {' '.join(map(str, listeners))}"
