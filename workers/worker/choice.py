"""Which lane each source of a worker gets (called by the master, and by the worker where steps have changed)."""

from __future__ import annotations

from prefork.workers.worker.lanes import Accounted, Common, Lane, OneByOne
from prefork.workers.worker.rounds import Rounds
from prefork.workers.worker.source import Source


def lanes_for(sources: list[Source], common: Common) -> list[Lane]:
    """Return a lane for each source."""
    return [_lane_for(source, common) for source in sources]


def _lane_for(source: Source, common: Common) -> Lane:
    if common.account is not None:
        return Accounted(source, common, common.account)
    lane = OneByOne(source, common)
    if source.datagrams is not None and common.surroundings is None and common.admission is None:
        lane.for_queue = Rounds(source, common, source.datagrams)
    return lane
