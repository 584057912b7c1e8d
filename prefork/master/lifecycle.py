"""The life of a pool (pure): its phases, its orders, and what each order does in each phase.

Rule 1: everything that decides about the phase of a pool stands in this file. As much as possible
is in the table; the rest is in the functions below the table.

Rule 2: the master changes its ``Life`` in one method, which logs the change
(``Master._change_life``). It carries out the effects of the table and adds no condition to them.

Theory of operation
===================

A pool moves through the phases of ``states.Phase`` in one direction. It may skip phases:

    SERVING --> NOT_READY --> DRAINING --> LEAVING --> STOPPING_NOW

Two kinds of things move it.

1. An order: a signal, a call of ``shutdown()``, or a failure of the master's own loop. ``obey()``
   looks the order up in ``TRANSITIONS``, which has a cell for every order in every phase. The cell
   is an effect. Some effects enter a phase (``ENTERS``). The other effects leave the phase as it is:
   the master then reloads, changes the number of workers, or reports.
2. Time. When the ``drain_delay`` is over, ``advance()`` moves the pool from NOT_READY to DRAINING.

A third thing ends the life: ``has_stopped()`` is true when no worker is left and, while the pool
drains, no client is queued. There is no phase for this end, because no process could see such a
phase: the shared memory that publishes the phase goes away with the pool.

The pool promises the time of its end once. The order that ends SERVING sets ``stop_by``, and no
later order changes it. From that instant on the policy dumps and kills the workers that are left
(``workers/pool/deadlines.py``). So a stop ends in time even when no worker obeys.

Repeated signals. A second TERM or INT means *now*, and a second QUIT does not wait for the stacks.
But the same order can arrive twice: ``timeout(1)`` sends its signal to its child and then to the
whole process group, and a wrapper in a terminal may do the same. So a repetition within
``SAME_ORDER`` seconds belongs to the first order and has no effect. A later repetition is looked up
as ``AGAIN``. TERM and INT count as one kind of signal, and the first of them counts whatever it did:
after ``shutdown()`` the first TERM has no effect and the second one means *now*.
"""

from __future__ import annotations

import enum

import msgspec

from prefork.workers.settings import Settings
from prefork.workers.states import Phase

SAME_ORDER = 0.05
"""Seconds within which a repeated TERM, INT or QUIT belongs to the first one. People take longer."""


class MasterOrder(enum.StrEnum):
    """An order to the master. Its value is its name in the log, except for AGAIN, which is never logged."""

    TERM = "SIGTERM"
    INT = "SIGINT"
    QUIT = "SIGQUIT"
    AGAIN = "again"
    """A second TERM or INT, or a second QUIT. It is never sent: ``effect_of()`` recognizes it."""
    SHUTDOWN = "shutdown()"
    FAILURE = "failure"
    """An exception has left a tick of the master, for example one of ``service_actions()``."""
    HUP = "SIGHUP"
    USR2 = "SIGUSR2"
    TTIN = "SIGTTIN"
    TTOU = "SIGTTOU"
    USR1 = "SIGUSR1"
    URG = "SIGURG"


class Effect(enum.Enum):
    """What an order does. The value is what the table in docs/SIGNALS.md says."""

    STOP = "stops gracefully"
    """Accept clients for ``drain_delay``, then serve what is queued, then stop."""
    LEAVE = "finishes the requests in hand"
    """Leave what is queued to the next server of this socket."""
    DUMP_AND_KILL = "logs stacks and kills"
    KILL = "kills"
    SKIP_DUMPS = "kills without waiting for the stacks"
    RELOAD = "reloads"
    RESIZE = "resizes"
    REPORT = "reports"
    CANCEL = "cancels"
    """Ask the requests to end that commands have named (workers/named_requests.py)."""
    NONE = "no effect"
    CANNOT_OCCUR = "-"
    REPEATED = "the same order once more"
    """In no cell: the order came within ``SAME_ORDER`` of the one that it repeats."""


ENTERS = {
    Effect.STOP: Phase.NOT_READY,
    Effect.LEAVE: Phase.LEAVING,
    Effect.DUMP_AND_KILL: Phase.STOPPING_NOW,
    Effect.KILL: Phase.STOPPING_NOW,
}
"""The phase that an effect enters. An effect that is not listed leaves the phase as it is."""


def _table() -> dict[Phase, dict[MasterOrder, Effect]]:
    """Write the transitions down as a matrix, and return them by phase and order."""
    stop, leave, kill, dump = Effect.STOP, Effect.LEAVE, Effect.KILL, Effect.DUMP_AND_KILL
    skip, load, size, show = Effect.SKIP_DUMPS, Effect.RELOAD, Effect.RESIZE, Effect.REPORT
    none, never, end = Effect.NONE, Effect.CANNOT_OCCUR, Effect.CANCEL
    # Two kinds of cells cannot occur. A TERM or INT in NOT_READY or DRAINING is never the first
    # one, because only a first one leads there; likewise a QUIT in STOPPING_NOW counts as a second
    # one. And AGAIN needs a first one, which has ended SERVING.
    # fmt: off
    rows = {
        #                      SERVING  NOT_READY DRAINING LEAVING STOPPING_NOW
        MasterOrder.TERM:     (stop,    never,    never,   none,   none),
        MasterOrder.INT:      (stop,    never,    never,   none,   none),
        MasterOrder.QUIT:     (dump,    dump,     dump,    dump,   never),
        MasterOrder.AGAIN:    (never,   kill,     kill,    kill,   skip),
        MasterOrder.SHUTDOWN: (leave,   leave,    none,    none,   none),
        MasterOrder.FAILURE:  (leave,   leave,    leave,   none,   none),
        MasterOrder.HUP:      (load,    none,     none,    none,   none),
        MasterOrder.USR2:     (load,    none,     none,    none,   none),
        MasterOrder.TTIN:     (size,    none,     none,    none,   none),
        MasterOrder.TTOU:     (size,    none,     none,    none,   none),
        MasterOrder.USR1:     (show,    show,     show,    show,   show),
        MasterOrder.URG:      (end,     end,      end,     end,    none),
    }
    # fmt: on
    cells = {order: dict(zip(Phase, row, strict=True)) for order, row in rows.items()}
    return {phase: {order: cells[order][phase] for order in MasterOrder} for phase in Phase}


TRANSITIONS = _table()
"""What each order does in each phase: ``TRANSITIONS[phase][order]``."""


class Life(msgspec.Struct, frozen=True):
    """How far the life of a pool has come. Every instant is in seconds on the master's clock.

    since: when the phase was entered. drain_at: when NOT_READY ends. stop_by: when the graceful part
    of the stop ends; 0 while the pool serves. dump_first: while STOPPING_NOW, log the stacks of the
    workers before they are killed. interrupted: INT was among the orders, so ``serve_forever()``
    ends with KeyboardInterrupt. term_at: when the first TERM or INT came, None before.
    """

    phase: Phase = Phase.SERVING
    since: float = 0.0
    drain_at: float = 0.0
    stop_by: float = 0.0
    dump_first: bool = False
    interrupted: bool = False
    term_at: float | None = None


def effect_of(life: Life, order: MasterOrder, now: float) -> Effect:
    """Return what an order does at this moment of a life."""
    first_at = _first_at(life, order)
    if first_at is None:
        return TRANSITIONS[life.phase][order]
    if now - first_at < SAME_ORDER:
        return Effect.REPEATED
    return TRANSITIONS[life.phase][MasterOrder.AGAIN]


def obey(life: Life, order: MasterOrder, settings: Settings, now: float) -> Life:
    """Return the life after an order."""
    effect = effect_of(life, order, now)
    if order in (MasterOrder.TERM, MasterOrder.INT):
        life = msgspec.structs.replace(
            life,
            term_at=now if life.term_at is None else life.term_at,
            interrupted=life.interrupted or order is MasterOrder.INT,
        )
    if effect is Effect.SKIP_DUMPS:
        return msgspec.structs.replace(life, dump_first=False)
    if effect not in ENTERS:
        return life
    if life.phase is Phase.SERVING:
        life = _with_promise(life, effect, settings, now)
    return msgspec.structs.replace(
        life, phase=ENTERS[effect], since=now, dump_first=effect is Effect.DUMP_AND_KILL
    )


def advance(life: Life, now: float) -> Life:
    """Return the life at this time: NOT_READY ends when the ``drain_delay`` is over."""
    if life.phase is Phase.NOT_READY and now >= life.drain_at:
        return msgspec.structs.replace(life, phase=Phase.DRAINING, since=now)
    return life


def reason_to_advance(life: Life) -> str:
    """Return why ``advance()`` leaves NOT_READY, for the log: a pool may have no delay to wait for."""
    return "drain_delay" if life.drain_at > life.since else "no_drain_delay"


def next_instant(life: Life) -> float | None:
    """Return when ``advance()`` will change the life; None if only an order can."""
    return life.drain_at if life.phase is Phase.NOT_READY else None


def has_stopped(life: Life, now: float, *, workers: int, work_waiting: bool) -> bool:
    """Tell whether this life is over.

    workers: how many are left, the leaving and the killed ones included. work_waiting: clients that
    came before the intake was closed are still queued; while draining, another worker serves them.
    """
    if life.phase.keeps_size or workers:
        return False
    return life.phase is not Phase.DRAINING or not work_waiting or now >= life.stop_by


def _first_at(life: Life, order: MasterOrder) -> float | None:
    """Return when the order came that this one repeats; None for an order that repeats none."""
    if order in (MasterOrder.TERM, MasterOrder.INT):
        return life.term_at
    if order is MasterOrder.QUIT and life.phase is Phase.STOPPING_NOW:
        return life.since
    return None


def _with_promise(life: Life, effect: Effect, settings: Settings, now: float) -> Life:
    """Set the instants of a stop. It happens once in a life, at the end of SERVING."""
    drain_at = now + settings.drain_delay if effect is Effect.STOP else now
    return msgspec.structs.replace(
        life, drain_at=drain_at, stop_by=drain_at + settings.graceful_timeout
    )
