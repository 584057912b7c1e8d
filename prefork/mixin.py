"""PreForkingMixIn: the contract of ``socketserver``, and what is done with a pool behind it."""

from __future__ import annotations

import reprlib
from socketserver import BaseServer
from typing import TYPE_CHECKING, Any, Self

from prefork import serving
from prefork.serving import Served, run_of
from prefork.workers.layers import from_attributes
from prefork.workers.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefork.workers.identity import WorkerInfo
    from prefork.workers.states import ExitCause
    from prefork.workers.worker.side import ThisWorker


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

    def __new__(cls, *_args: Any, **_kwargs: Any) -> Self:
        """Make the server known to this process; there is no ``__init__`` that everybody would call."""
        server: Self = super().__new__(cls)
        serving.make_known(server)
        return server

    # --- what a handler can ask

    @property
    def worker(self) -> ThisWorker | None:
        """The worker this is running in (slot, generation, pid, extend_deadline()), None in the master."""
        side = run_of(self).side
        return side.info if side is not None else None

    @property
    def stopping(self) -> bool:
        """Whether this worker has been asked to leave; a long handler may want to finish early."""
        side = run_of(self).side
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
        run = run_of(self)
        if run.side is not None:
            run.side.ask_shutdown()
            return
        run.ask_shutdown()
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
        run = run_of(self)
        if run.side is not None:
            inherited = getattr(super(), "collect_children", None)
            if inherited is not None:
                inherited(blocking=blocking)
        elif run.master is not None:
            run.master.collect()

    def server_close(self) -> None:
        """Close the server; when another thread is serving, stop the pool first.

        With ``block_on_close`` it returns when no worker is left, without it at once.
        """
        run = run_of(self)
        # Closed under the feet of a running master, the number would soon be another file's.
        if run.side is not None or not run.ask_close():
            super().server_close()
            return
        if run.without_workers:
            super().shutdown()
        if self.block_on_close:
            run.stopped.wait()

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
    serving.serve(
        [Served(one, run_of(one), super(PreForkingMixIn, one)) for one in servers],
        from_attributes(leader) if settings is None else settings,
        poll_interval,
        _hooks_of(leader),
    )


def _hooks_of(leader: PreForkingMixIn) -> Callable[..., bool]:
    """Return what calls the hooks of the leading server, by name, and tells whether it is a hook of its own."""

    def call(name: str, *arguments: Any) -> bool:
        hook = getattr(leader, name)
        hook(*arguments)
        return getattr(hook, "__func__", None) is not vars(PreForkingMixIn)[name]

    return call
