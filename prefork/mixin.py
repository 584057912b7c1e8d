"""``PreForkingMixIn`` and ``serve()``: the contract of ``socketserver``, kept by a pool of workers."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Sequence
from socketserver import BaseServer
from typing import TYPE_CHECKING, Any, Literal, Self

import msgspec

from prefork import runs, serving
from prefork.edge.setup import prepare
from prefork.misuse import (
    refuse_misspelt,
    refuse_wrong_hooks,
    refuse_wrong_hooks_of,
    refuse_wrong_order,
)
from prefork.runs import Served, run_of
from prefork.signature import SignatureOfInit
from prefork.usable import kind_of, refuse_unfit, refuse_unusable
from prefork.workers.identity import WorkerInfo
from prefork.workers.layers import from_attributes
from prefork.workers.settings import Settings
from prefork.workers.states import ExitCause
from prefork.workers.worker.side import ThisWorker


class PreForkingMixIn(BaseServer if TYPE_CHECKING else object):  # type: ignore[misc]
    """Mix-in that serves each request in one of a bounded pool of worker processes.

    Put the mix-in in front of any ``socketserver`` server class, and keep the handlers::

        class Server(prefork.PreForkingMixIn, http.server.HTTPServer):
            workers = 4
            request_timeout = "30s"

        with Server(("127.0.0.1", 8000), Handler) as server:
            server.serve_forever()

    The workers are forked in ``serve_forever()``. They share the server's socket and handle one
    request after the other.

    The mix-in has no ``__init__()``. Class or instance attributes configure the pool. They are read
    when ``serve_forever()`` begins. Durations are seconds or a text such as "500ms", sizes are bytes
    or a text such as "256M", and None switches a limit off. ``help(prefork.Settings)`` and
    docs/SETTINGS.md describe each setting. A misspelt one is refused when the class is made.

    Methods for the caller:

    - ``serve_forever()``, ``shutdown()`` and ``server_close()`` mean what they mean in ``socketserver``.
    - All other methods of the server class are as they were.

    Methods that may be overridden:

    - ``get_request()``, ``verify_request()``, ``process_request()``, ``finish_request()``,
      ``shutdown_request()``, ``close_request()``, ``handle_error()`` (they run in the workers)
    - the hooks: ``when_ready()``, ``pre_fork()``, ``worker_init()`` and so on. The pool calls the hooks of
      the first server that it serves. An exception of a hook that runs in the master is logged and counted,
      and the pool serves on.

    Methods that may be extended and have to call ``super()``:

    - ``service_actions()``, ``server_close()``
    """

    # <settings> - written by make docs
    workers: int | Literal["auto"] = "auto"
    """How many workers to keep; 0 serves in the master itself, for debuggers."""
    max_children: int = 40
    """The largest number of workers that may exist at any moment; the default rises with workers.
    """
    min_spare: int | None = None
    """Keep at least this many workers idle, adding workers up to max_children when load rises."""
    max_spare: int | None = None
    """Keep at most this many workers idle; the default is twice min_spare."""
    max_requests: int | None = None
    """Recycle a worker after this many requests."""
    max_lifetime: float | str | None = None
    """Recycle a worker that has lived this long."""
    max_memory: int | str | None = None
    """Recycle a worker whose private memory (USS) exceeds this."""
    jitter: float | str = 0.1
    """Recycle each worker at a random point up to this far before its limit, so that they are not all
    replaced at once.
    """
    request_timeout: float | str | None = None
    """How long one request may take; after that its worker's stacks are logged and the worker is
    killed.
    """
    soft_timeout: float | str | None = None
    """How long one request may take before RequestTimeout is raised in its handler; the worker goes
    on.
    """
    cpu_timeout: float | str | None = None
    """How much CPU time one request may use before CPUTimeExceeded is raised in its handler."""
    check_client: Literal["off", "reset", "closed"] = "off"
    """End the request of a client that has gone: never, when its connection was reset, or also when it
    was closed; a client that has closed may only have half-closed.
    """
    max_queue_wait: float | str | None = None
    """Refuse a request that has waited longer than this in the kernel's queue, to serve one whose
    client still waits; not known for Unix streams.
    """
    max_per_client: int | None = None
    """How many workers one client address, or one /64 network of IPv6, may hold at a time."""
    slow_request: float | str | None = None
    """Log the stacks of a worker, once, when its request takes longer than this; the request goes on.
    """
    client_timeout: float | str | None = None
    """How long a handler waits for its client to send or to accept data, 0 for no limit; the command
    line's own default is 30s.
    """
    edge_timeout: float | str = 5.0
    """How long a client has for all that comes before the handler: PROXY header, TLS, authentication.
    """
    proxy_from: tuple[str, ...] | list[str] | str | None = None
    """A proxy, or a network of proxies, that must send a PROXY header; from all others a header is
    plain data.
    """
    allow: tuple[str, ...] | list[str] | str | None = None
    """Who may connect: a network, unix, unix:uid=N or unix:gid=N; everybody else is refused."""
    deny: tuple[str, ...] | list[str] | str | None = None
    """Who may not connect, also where allow says so: a network, unix, unix:uid=N or unix:gid=N."""
    max_auth_failures: int = 10
    """How often a client may fail to authenticate within a minute; then it is refused at once."""
    tls_certificate: tuple[str, ...] | list[str] | str | None = None
    """A PEM file with a certificate and its chain; of several, the name that a client asks for
    decides.
    """
    tls_key: tuple[str, ...] | list[str] | str | None = None
    """A PEM file with the key of the certificate, where the certificate's own file does not have it.
    """
    tls_key_password_file: str | None = None
    """A file with the password of the keys."""
    tls_client_ca: str | None = None
    """A PEM file with the authorities one of which must have signed the certificate of each client.
    """
    tls_alpn: tuple[str, ...] | list[str] | str | None = None
    """A protocol to offer by ALPN, best first."""
    tls_watch: bool | str = False
    """Reload when a file of a certificate, of a key or of the authorities has changed."""
    defer_accept: float | str | None = None
    """Leave a TCP connection in the kernel until its client has sent data, for about this long at
    most; for protocols in which the client speaks first.
    """
    crash_loop: Literal["retry", "exit"] = "retry"
    """What to do when new workers die again and again before they are ready: keep trying, or exit with
    code 5.
    """
    restore_process: bool | str = False
    """Put timers, signal mask, working directory and umask back after each request, which costs 3 µs.
    """
    fork_check: Literal["warn", "error", "off"] = "warn"
    """What to do when the master has other threads, which its workers would not have: warn once,
    refuse to fork, or nothing.
    """
    boot_timeout: float | str = 60.0
    """How long a worker may take from its fork until it is ready."""
    graceful_timeout: float | str = 25.0
    """How long a retiring worker may take to finish its request before it is killed."""
    drain_delay: float | str = 0.0
    """How long to keep accepting after TERM, so that load balancers notice first."""
    max_parked: int | None = None
    """How many idle connections may be parked; the default is 10000, or less where the limit of
    descriptors is lower.
    """
    park_timeout: float | str = 60.0
    """Close a parked connection after this much silence, 0 for no limit."""
    park_new: bool | str = False
    """Park a new connection until its client speaks, for protocols in which the client speaks first.
    """
    linger: float | str = 0.001
    """How long a worker itself waits for the next request of a connection before it parks the
    connection; only while nothing else waits.
    """
    metrics_address: str | None = None
    """Where the metrics process listens: /metrics, /livez, /readyz, /status and a status page."""
    agent_address: str | None = None
    """Where the metrics process answers HAProxy's agent check, which tells HAProxy how much this pool
    can take.
    """
    agent_mode: Literal["maxconn", "weight"] = "maxconn"
    """What the agent reports: how many workers take requests, so that HAProxy queues the rest
    (maxconn), or the share of them that is idle (weight).
    """
    metrics_dir: str | None = None
    """A directory for the metrics that handlers keep with prometheus_client, emptied at the start;
    PROMETHEUS_MULTIPROC_DIR names it, too.
    """
    access_log: Literal["off", "text", "json", "common", "combined", "timed"] = "off"
    """Log a line for each request: for people (text), for machines (json), or, of WSGI applications,
    as other web servers do (common, combined, or timed: combined with duration and queue wait).
    """
    run_as_user: str | int | None = None
    """The user that the workers run as; the master keeps its own."""
    run_as_group: str | int | None = None
    """The group that the workers run as; the default is the main group of the user."""
    umask: int | str | None = None
    """The file mode mask of the master and its workers, in octal."""
    limits: dict[str, int | str] | str | None = None
    """Limits of setrlimit() for each worker, soft and hard, such as as=2G nofile=1024 core=0."""
    nice: int | None = None
    """The niceness of the workers; the master keeps its own."""
    oom_score_adj: int | None = None
    """The oom_score_adj of the workers, so that the kernel kills a worker before the master when
    memory is low.
    """
    pool_name: str | None = None
    """The name of the pool in process titles."""
    # </settings>

    block_on_close: bool = True
    """Whether ``server_close()`` from another thread waits until no worker is left."""

    listener_inherited: bool = False
    """Whether another process, such as a supervisor, holds the server's socket, too.

    A stop by signal refuses new clients for all processes that have the socket. With this attribute
    set, the stop leaves the socket and its queue to the other process.
    """

    active_children: set[int] | None = None
    """The pids of the live workers. None before the first ``serve_forever()`` and in a worker."""

    def __init_subclass__(cls, **given: Any) -> None:
        """Refuse a class that cannot do what its author meant: MisuseError, SettingsError."""
        super().__init_subclass__(**given)
        refuse_wrong_order(cls, PreForkingMixIn)
        refuse_misspelt(cls, vars(cls))
        refuse_wrong_hooks(cls, PreForkingMixIn)

    if not TYPE_CHECKING:  # type checkers, too, look at __new__() before they look at __init__()

        def __new__(cls, *_args: Any, **_kwargs: Any) -> Self:
            """Make the server object known to ``prefork.runs``.

            ``__new__()`` does this because it always runs. Many programs call
            ``TCPServer.__init__()`` by its name, so an ``__init__()`` of the mix-in would be passed
            over.
            """
            server = super().__new__(cls)
            runs.make_known(server)
            prepare(server, serves=False)
            return server

        __signature__ = SignatureOfInit(__new__)

    # --- what a handler can ask

    @property
    def worker(self) -> ThisWorker | None:
        """The worker in which this code runs, as a ``ThisWorker``; None in the master.

        ``prefork.current_worker()`` returns the same, and needs no server object.
        """
        side = run_of(self).side
        return side.info if side is not None else None

    @property
    def stopping(self) -> bool:
        """Whether this worker was asked to leave, so that a long handler can finish early.

        False in the master.
        """
        side = run_of(self).side
        return side is not None and side.stopping

    # --- the contract of socketserver

    def serve_forever(self, poll_interval: float | None = 0.5) -> None:
        """Serve with a pool of workers until ``shutdown()`` or a signal.

        The process that calls this method becomes the master.

        In the main thread this method handles the signals of docs/SIGNALS.md, and restores the
        program's handlers before it returns. After TERM it returns, and after INT it raises
        KeyboardInterrupt. In both cases the stop is graceful. Where the program has a handler of its own
        for the signal, that handler is called before the return, and for INT it takes the place of the
        exception. In any other thread this method handles no signal.

        poll_interval: the most seconds between two calls of ``service_actions()``. SettingsError: a
        setting is wrong, and nothing was forked. BootError: no worker of the first generation became
        ready. CrashLoopError: new workers died again and again, and ``crash_loop`` is "exit".
        """
        serve(self, poll_interval=poll_interval)

    def handle_request(self) -> None:
        """Handle one request in this process, with the edge that the attributes ask for now."""
        prepare(self)
        super().handle_request()

    def shutdown(self) -> None:
        """Stop ``serve_forever()`` gracefully, and wait until it has stopped.

        Called before ``serve_forever()``, this method waits for that call, which then returns at once.
        In the thread that serves (in a hook, in ``service_actions()``, in a signal handler) and in a worker
        this method asks the master to stop, and returns without waiting.
        """
        run = run_of(self)
        if run.side is not None:
            run.side.ask_shutdown()
            return
        run.ask_shutdown()
        if run.is_served_here:
            # What BaseServer.shutdown() does before it waits; only workers = 0 needs it.
            self._BaseServer__shutdown_request = True
            return
        if run.without_workers:
            super().shutdown()
        run.stopped.wait()

    def service_actions(self) -> None:
        """Collect the workers that have ended (master).

        The master calls this method at least every ``poll_interval`` seconds. A subclass may extend the
        method for periodic work in the master. An exception stops the pool, and leaves ``serve_forever()``
        when no worker is left.
        """
        super().service_actions()
        self.collect_children()

    def collect_children(self, *, blocking: bool = False) -> None:
        """Collect the workers that have ended, and no other child of this process.

        blocking: accepted because ``ForkingMixIn`` has it, and without effect. The workers of a
        pool do not end by themselves, so there is nothing to wait for. In a worker this method
        calls ``collect_children()`` of the server class, if that has one.
        """
        run = run_of(self)
        if run.side is not None:
            inherited = getattr(super(), "collect_children", None)
            if inherited is not None:
                inherited(blocking=blocking)
        elif run.master is not None:
            run.master.collect()

    def server_close(self) -> None:
        """Close the server. While another thread serves, the pool is stopped first.

        With ``block_on_close`` this method then returns when no worker is left, otherwise at once.
        The socket of a running pool is closed by the master, at the end. If it were closed here,
        its descriptor number could be reused by another file, and the master would go on using the
        number.
        """
        run = run_of(self)
        if run.side is not None or not run.ask_close():
            super().server_close()
            return
        if run.without_workers:
            super().shutdown()
        if self.block_on_close:
            run.stopped.wait()

    def request_cancelled(self, request: Any, client_address: Any, reason: str) -> None:
        """Answer the client of a request that was asked to end (worker).

        Called when the handler has ended by RequestCancelled, before ``shutdown_request()`` and in place of
        ``handle_error()``. By default the client gets no answer. An override may write one, such as a 504, to
        ``request``; for a stream, the handler may have sent a part of its own answer before. An override has
        one second. After that RequestCancelled is raised in it, too.

        reason: a ``prefork.CancelReason``, which is a string: ``soft_timeout``, ``cpu_timeout``,
        ``client_gone``, ``command``, ``urgent`` or ``handler``. An exception is logged and costs this request
        only.
        """

    def shed_request(self, request: Any, client_address: Any) -> None:
        """Answer the client of a request that has waited for longer than ``max_queue_wait`` (worker).

        Called in place of ``verify_request()``, before ``shutdown_request()``. By default the client gets no
        answer. An override may write one, such as a 503, and should be quick: other clients wait.
        An exception is logged.
        """

    # --- hooks: each one does nothing here, and may be overridden

    def when_ready(self) -> None:
        """Run when the first workers are ready (master).

        After a reload, the hook of the new program runs when as many of its own workers are ready as
        the pool keeps.
        """

    def pre_fork(self, worker: WorkerInfo) -> None:
        """Run before a worker is forked; ``worker.pid`` is still 0 (master)."""

    def worker_init(self, worker: WorkerInfo) -> None:
        """Run in a new worker, before its first request (worker).

        The place for what each worker needs for itself, such as a connection to a database. An exception
        ends the worker as one that cannot boot.
        """

    def worker_ready(self, worker: WorkerInfo) -> None:
        """Run when a worker is ready and serves (master)."""

    def worker_exit(self, worker: WorkerInfo, cause: ExitCause) -> None:
        """Run after a worker's last request, unless the worker is killed (worker)."""

    def worker_died(self, worker: WorkerInfo, cause: ExitCause) -> None:
        """Run when a worker has ended and was collected (master).

        cause: why the worker ended.
        """

    def pool_resized(self, old: int, new: int, why: str) -> None:
        """Run when the number of workers to keep has changed (master).

        old, new: the numbers. why: the word that the line ``resized`` of the log has.
        """

    def on_reload(self) -> None:
        """Run when new code has passed its trial, before this process becomes the new code (master)."""

    def on_exit(self) -> None:
        """Run when the pool has stopped and no worker is left (master)."""


def serve(
    *servers: PreForkingMixIn, settings: Settings | None = None, poll_interval: float | None = 0.5
) -> None:
    """Serve several servers with one pool of workers.

    The servers may be of different kinds and have different handlers.

    The attributes of the first server are the settings of the pool, unless ``settings`` is given. The
    pool calls the hooks and ``service_actions()`` of the first server only. ``shutdown()`` of any of the
    servers stops the pool. All else is as in ``PreForkingMixIn.serve_forever()``. TypeError: there is no
    server, or one of them lacks the mix-in.
    """
    if not servers:
        raise TypeError("serve() needs at least one server, as in serve(server)")
    for server in servers:
        if not isinstance(server, PreForkingMixIn):
            raise TypeError(
                f"serve() cannot serve {reprlib.repr(server)}: it takes instances of classes with "
                "PreForkingMixIn, as in serve(first, second)"
            )
        refuse_misspelt(type(server), vars(server))
        refuse_wrong_hooks_of(server)
        prepare(server, given=settings)
        run_of(server).given = settings
    leader = servers[0]
    serving.serve(
        [Served(one, run_of(one), super(PreForkingMixIn, one)) for one in servers],
        _usable(servers, settings),
        poll_interval,
        _hooks_of(leader),
    )


def _usable(servers: Sequence[PreForkingMixIn], given: Settings | None) -> Settings:
    """Return the given settings, or those of the leading server. Each of their values can be used."""
    if given is None:
        resolved = from_attributes(servers[0])
        settings, origin = resolved.settings, resolved.origins.__getitem__
    else:
        settings, origin = given, _origin_of_given
    values = msgspec.structs.asdict(settings)
    refuse_unusable(values, origin)
    refuse_unfit(values, origin, [kind_of(server) for server in servers])
    return settings


def _origin_of_given(key: str) -> str:
    return f"Settings({key}=…)"


def _hooks_of(leader: PreForkingMixIn) -> Callable[..., bool]:
    """Return a function that calls a hook of the leading server by name.

    The function returns whether the hook is one of the program and not the empty one of the mix-in.
    """

    def call(name: str, *arguments: Any) -> bool:
        hook = getattr(leader, name)
        hook(*arguments)
        return getattr(hook, "__func__", None) is not vars(PreForkingMixIn)[name]

    return call
