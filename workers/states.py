"""The states of a worker, the phases of a pool and the causes of an exit (pure)."""

from __future__ import annotations

import enum
import signal

import msgspec


class WorkerState(enum.IntEnum):
    """What a slot's worker is doing: ``starting → idle ⇄ busy → retiring → gone``.

    The master writes starting. The worker writes idle when it is ready, and retiring when it leaves
    by itself. Busy is not written: an idle worker is busy while its slot has the time of a request
    in hand. Two states come from the master whatever the worker writes: a slot without a worker is
    gone, and a worker that was asked to leave is retiring.
    """

    GONE = 0
    STARTING = 1
    IDLE = 2
    BUSY = 3
    RETIRING = 4


READY = (WorkerState.IDLE, WorkerState.BUSY)
"""The states in which a worker takes requests: a worker in one of them is *ready*."""


class Order(enum.IntEnum):
    """What the master wants of a worker: a word that the worker reads between requests."""

    SERVE = 0
    RETIRE = 1
    """Leave after the request in hand."""
    DRAIN = 2
    """Leave once nothing is waiting in the kernel's queue."""


class Phase(enum.IntEnum):
    """What the whole pool is doing. A pool only moves downwards in this list.

    ``prefork/master/lifecycle.py`` says what moves a pool from one phase to another.
    """

    SERVING = 0
    NOT_READY = 1
    """The pool will stop, and still accepts clients for ``drain_delay``: load balancers notice."""
    DRAINING = 2
    """New clients are refused. The workers serve what the kernel has queued, and leave."""
    LEAVING = 3
    """The workers finish the requests in hand and leave. The queue stays for the next server."""
    STOPPING_NOW = 4
    """The master kills the workers."""

    @property
    def keeps_size(self) -> bool:
        """Whether the pool is kept at its size: dead workers are replaced, load is followed."""
        return self <= Phase.NOT_READY


class Rejection(enum.StrEnum):
    """Why a request was rejected: the same word in the log and in the metrics.

    The scoreboard counts by position, so a new reason goes to the end.
    """

    VERIFY = "verify"
    """``verify_request()`` returned False."""
    PROXY = "proxy"
    """A peer that has to send a PROXY header sent none, or a malformed one."""
    ADDRESS = "address"
    """The rules ``allow`` and ``deny`` exclude the client."""
    TLS = "tls"
    """The handshake failed."""
    AUTHENTICATION = "authentication"
    """The client has not proved who it is."""
    THROTTLED = "throttled"
    """The client has failed to authenticate too often within a minute."""
    TIMEOUT = "timeout"
    """The client did not finish within ``edge_timeout``."""
    GONE = "gone"
    """The client went away before its request could begin."""
    QUEUE_WAIT = "queue_wait"
    """The request had waited in the kernel's queue for longer than ``max_queue_wait``."""
    PER_CLIENT = "per_client"
    """The client holds ``max_per_client`` workers already."""
    REQUEST = "request"
    """The handler refuses the request without its application, as with the statuses 400, 408 and 413 of HTTP."""


class ExitKind(enum.StrEnum):
    """Why a worker ended: the same word in the log, the metrics, hooks and commands.

    The scoreboard counts by position, so a new kind goes to the end.
    """

    RETIRED = "retired"
    """The pool stopped."""
    SCALED_DOWN = "scaled_down"
    """TTOU arrived, or load went down."""
    RELOADED = "reloaded"
    """A worker with newer code took its place."""
    MAX_REQUESTS = "max_requests"
    """The worker reached the limit of this name."""
    MAX_LIFETIME = "max_lifetime"
    """The worker reached the limit of this name."""
    MAX_MEMORY = "max_memory"
    """The worker reached the limit of this name."""
    REQUEST_TIMEOUT = "request_timeout"
    """A request took too long, and the master killed the worker."""
    BOOT_TIMEOUT = "boot_timeout"
    """The worker was not ready in time, and the master killed it."""
    BOOT_ERROR = "boot_error"
    """The worker ended before it was ready."""
    EXITED = "exited"
    """The worker ended by itself with an exit status, without having been asked."""
    KILLED = "killed"
    """A signal that the master had not sent ended the worker."""
    OOM_KILLED = "oom_killed"
    """The kernel killed the worker because of low memory."""
    ORPHANED = "orphaned"
    """The master of the worker was gone. Only ``worker_exit()`` receives this cause, because no master is left to count it."""
    STUCK = "stuck"
    """The worker said that it was idle, did not read a wake-up in time, and the master killed it."""


_KINDS = tuple(ExitKind)


def index_of(kind: ExitKind) -> int:
    """Return the position by which the scoreboard knows this kind."""
    return _KINDS.index(kind)


def kind_at(index: int) -> ExitKind | None:
    """Return the kind at that position, None where there is none."""
    return _KINDS[index] if 0 <= index < len(_KINDS) else None


class StartReason(enum.StrEnum):
    """Why a worker was forked.

    The scoreboard counts by position, so a new reason goes to the end.
    """

    STARTED = "started"
    """The pool started, or a signal added a worker."""
    GREW = "grew"
    """Load rose."""
    RESPAWNED = "respawned"
    """Another worker died unexpectedly."""
    RECYCLED = "recycled"
    """Another worker reached a limit."""
    RELOADED = "reloaded"
    """A new generation takes over."""


class ReloadState(enum.IntEnum):
    """How far a reload has come."""

    NONE = 0
    """There has been no reload yet."""
    TRYING = 1
    """A child loads the new code."""
    ROLLING = 2
    """The new generation takes over."""
    DONE = 3
    FAILED = 4


class SaturationCause(enum.IntEnum):
    """Why a pool cannot keep up: what its workers do while clients wait."""

    NONE = 0
    """The pool keeps up, or has not failed to do so for long."""
    WORKERS_COMPUTE = 1
    WORKERS_WAIT = 2
    """For anything, mostly for clients that keep their connections open."""
    HANDLERS_WAIT = 3
    """Within requests. Connections that stay open hold no worker of this pool, because they are parked."""


class ExitCause(msgspec.Struct, frozen=True):
    """Why one worker ended. ``str()`` returns the word of the log, such as ``killed(SIGKILL)``.

    status: the exit status for ``exited`` and ``boot_error``, the number of the signal for
    ``killed``. None for every other kind, and where something else in the process has collected the
    status.
    """

    kind: ExitKind
    status: int | None = None

    def __str__(self) -> str:
        if self.kind is ExitKind.EXITED:
            return f"exited({'unknown' if self.status is None else self.status})"
        if self.kind is ExitKind.KILLED and self.status is not None:
            return f"killed({signal_name(self.status)})"
        return self.kind.value


class Usage(msgspec.Struct, frozen=True):
    """What a child has used in its life, as the kernel counted it.

    user_ns, system_ns: CPU time. peak_bytes: the most resident memory that it had at one time.
    """

    user_ns: int = 0
    system_ns: int = 0
    voluntary_switches: int = 0
    involuntary_switches: int = 0
    peak_bytes: int = 0


class MainThread(msgspec.Struct, frozen=True):
    """What the kernel says of a child's main thread.

    state: the letter that ``ps`` shows, such as ``S`` (sleeps), ``R`` (runs, or waits for a processor), ``D``
    (waits for a disk), ``T`` (stopped by a signal), ``t`` (stopped by a debugger). cpu: the seconds of CPU time
    that the thread has used in its life.
    """

    state: str
    cpu: float


class ExitStatus(msgspec.Struct, frozen=True):
    """How a child ended, as the kernel reports it.

    code, signal: its exit status, or the number of the signal that ended it. Both are None where
    something else in the process has collected the child.
    """

    code: int | None = None
    signal: int | None = None
    usage: Usage = Usage()


def cause_of_exit(
    status: ExitStatus,
    *,
    asked: ExitCause | None,
    killed_for: ExitCause | None,
    was_ready: bool,
    out_of_memory: bool = False,
) -> ExitCause:
    """Return why a worker ended.

    The first that fits decides: a kill by the master, a signal from elsewhere, what the master had
    asked the worker for (if its exit status is 0 or unknown), the exit status.

    asked: why the master asked the worker to leave, None where it did not. killed_for: why the
    master killed it, None where it did not. was_ready: whether it had become ready. out_of_memory:
    whether the kernel has killed a process here because of low memory, and that kill explains this
    death.

    Shared memory does not count, because a worker can write anything there.
    """
    if killed_for is not None:
        return killed_for
    if status.signal == signal.SIGKILL and out_of_memory:
        return ExitCause(ExitKind.OOM_KILLED)
    if status.signal is not None:
        return ExitCause(ExitKind.KILLED, status.signal)
    if asked is not None and status.code in (0, None):
        return asked
    if not was_ready:
        return ExitCause(ExitKind.BOOT_ERROR, status.code)
    return ExitCause(ExitKind.EXITED, status.code)


def signal_name(number: int) -> str:
    """Return a signal's name, such as ``SIGKILL``; ``signal N`` for a number without one."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
