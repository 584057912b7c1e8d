"""The memory of workers: given back by idle ones, and explained."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from tests.support.clients import ask
from tests.support.processes import private_bytes
from tests.support.server import environment
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.server import Program

IMPATIENT = """
    from tests.support.app import *
    import prefork.workers.worker.loop

    prefork.workers.worker.loop.WAIT_BOUND = 0.2
"""


FILL = "self.server.__dict__.update(kept=[bytes(1000) for _ in range(60000)][-1])"
"""Takes 60 MB from malloc() in small pieces, and keeps the last of them, which is on top of all others."""


def test_idle_worker_gives_memory_back(start: Callable[..., Program]) -> None:
    """A worker whose heap has grown in a request gives what is free of it back to the system when it is idle."""
    program = start(IMPATIENT + "    serve(Run, workers=1)\n")
    address = program.address()
    ask(address, "1 + 1")
    worker = program.worker()
    before = private_bytes(worker)
    grown = int(ask(address, f"[{FILL}, {_PRIVATE}][1]").split()[1])
    assert grown > before + 40_000_000
    wait_until(
        lambda: private_bytes(worker) < before + 10_000_000,
        lambda: f"a smaller worker than {private_bytes(worker)}",
    )


_SPRINKLED = "[self.server.__dict__.update(few=[bytes(1000) for _ in range(6000)][::100])]"
"""Takes 6 MB, too little to be returned, and frees nearly all."""


_PRIVATE = (
    "sum(int(line.split()[1]) * 1024 for line in open('/proc/self/smaps_rollup') "
    "if line.startswith('Private_'))"
)


def test_memory_of_each_worker_is_explained(start: Callable[..., Program]) -> None:
    """Prefork memory says of each worker what it shares, and finds what a request has allocated since the fork."""
    program = start(IMPATIENT + "    serve(Run, workers=2)\n")
    address = program.address()
    command = [sys.executable, "-m", "prefork", "memory", "--json", str(program.pid)]

    def workers() -> dict[int, dict[str, Any]]:
        said = subprocess.run(
            command, capture_output=True, text=True, check=True, env=environment()
        ).stdout
        return {one["pid"]: one for one in json.loads(said)["workers"]}

    before = workers()
    assert {*before} == program.workers()
    busy = int(
        ask(address, "setattr(self.server, 'kept', bytearray(b'x') * 30_000_000)").split()[0]
    )
    after = workers()
    assert after[busy]["allocated"] > before[busy]["allocated"] + 25_000_000

    def late_worker() -> int:
        # Not the one above: it has grown enough to give back what is free.
        served_by = int(
            ask(address, f"[__import__('colorsys'), {_SPRINKLED}][0].ONE_SIXTH").split()[0]
        )
        return 0 if served_by == busy else served_by

    late = wait_until(late_worker, "the other worker has served")
    wait_until(
        lambda: (said := workers()[late])["modules"] >= 1 and said["kept"] > 1_000_000,
        lambda: f"the worker {late} says what it has imported and what malloc() keeps: {workers()}",
    )
    assert all(one["shared"] > 1_000_000 for one in after.values())
    text = subprocess.run(
        [*command[:4], str(program.pid)],
        capture_output=True,
        text=True,
        check=True,
        env=environment(),
    ).stdout
    assert "allocated" in text
    assert "one more worker would cost about" in text
