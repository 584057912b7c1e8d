"""The metrics process as the caretaker starts it: a program, not a fork (new image).

The caretaker runs at the end of its interpreter, where Python refuses a fork from 3.12 on. The
metrics process needs nothing of this process but descriptors and a few words, so it can be an
interpreter of its own. The next image replaces it as it replaces any other.
"""

from __future__ import annotations

import contextlib
import os

import msgspec

from prefork.host.handover import MasterState, MetricsOrders
from prefork.host.process import process
from prefork.reloading.trial import NOT_FOR_A_TRIAL
from prefork.workers import system
from prefork.workers.programs import call_of, start_program


def start_metrics(state: MasterState) -> system.Child | None:
    """Start a metrics process for the pool of a state; None where the system refuses it."""
    if (metrics := state.metrics) is None:
        return None
    pool, life = state.pool, state.pool.life[0]
    orders = MetricsOrders(metrics, pool.board, pool.slots, life, os.getpid())
    # By its name: the module belongs to the master, which knows reloading and not the reverse.
    command = call_of(
        "prefork.master.metrics_main", "run_as_program", [msgspec.json.encode(orders).decode()]
    )
    given = process.program.environment.items()
    environment = {key: value for key, value in given if key not in NOT_FOR_A_TRIAL}
    with contextlib.suppress(OSError, ValueError):
        program = start_program(
            command,
            environment=environment,
            keep=[*(one.fd for one in metrics.endpoints.values()), pool.board, life],
            has_terminal=True,
        )
        pid = program.release()
        return system.Child(pid, system.hold_process(pid))
    return None
