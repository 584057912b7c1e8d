"""What is said of a pool that cannot keep up: in its log, its status and on its page (pure)."""

from __future__ import annotations

from typing import Final

from prefork.workers.states import SaturationCause

REASONS: Final = {
    SaturationCause.WORKERS_COMPUTE: "the workers compute",
    SaturationCause.WORKERS_WAIT: "the workers wait, within requests or for connections that stay open",
    SaturationCause.HANDLERS_WAIT: "the workers wait within requests, for other servers or for slow clients",
}
"""What the workers do while clients wait."""

REMEDIES: Final = {
    SaturationCause.WORKERS_COMPUTE: (
        "raise workers, or max_children with min_spare, up to the number of CPUs"
    ),
    SaturationCause.WORKERS_WAIT: (
        "raise workers or set min_spare, set client_timeout, put ThreadingMixIn behind the mix-in, or park idle "
        "connections (ParkingMixIn)"
    ),
    SaturationCause.HANDLERS_WAIT: (
        "raise workers or set min_spare, and limit the wait by client_timeout, soft_timeout or "
        "request_timeout"
    ),
}
"""What to do about it."""
