"""The access log: one line for each request, written when the request is over (worker).

The lines go to the logger "prefork.access" at level INFO. A request that ends with its worker has no
line; the master logs the death of the worker.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from prefork.workers import log
from prefork.workers.listener import Listener
from prefork.workers.settings import Settings
from prefork.workers.slot_writer import Outcome, SlotWriter
from prefork.workers.worker.clients import client_facts, client_name

logger = logging.getLogger("prefork.access")

LogRequest = Callable[[Listener, Any, int | None, Outcome, int], None]
"""What is called at the end of a request, with the arguments of ``AccessLog.write()``."""

_PLAIN = re.compile(r"[!#-<>-\[\]-~]+")
"""Text that needs no quotes: printable ASCII without space, quotation mark, equals sign and backslash."""


def access_log_for(
    settings: Settings, slot: int, generation: int, writer: SlotWriter
) -> LogRequest | None:
    """Return what logs a request of this worker, None where the setting ``access_log`` is off."""
    if settings.access_log == "off":
        return None
    return AccessLog(settings.access_log, slot, generation, writer).write


class AccessLog:
    """The lines of one worker. form: "text" or "json", as the setting ``access_log``."""

    def __init__(self, form: str, slot: int, generation: int, writer: SlotWriter) -> None:
        self._line = _json_line if form == "json" else _text_line
        self._worker = {"slot": slot, "generation": generation}
        self._writer = writer

    def write(
        self,
        listener: Listener,
        client_address: Any,
        waited_ns: int | None,
        outcome: Outcome,
        duration_ns: int,
    ) -> None:
        """Log one request; raises nothing.

        waited_ns: nanoseconds in the kernel's queue, None for unknown. duration_ns: from the take to
        the end.
        """
        # A process that a handler has forked comes here, too. The request is its worker's.
        if not logger.isEnabledFor(logging.INFO) or self._writer.is_detached:
            return
        facts: dict[str, Any] = {
            **client_facts(client_address),
            "client": client_name(client_address),
            "duration": round(duration_ns / 1e9, 6),
            "queue_wait": None if waited_ns is None else round(waited_ns / 1e9, 6),
            "outcome": Outcome(outcome).word,
            **_reason(outcome),
            **self._worker,
            "listener": str(listener),
        }
        log.emit(logger, logging.INFO, self._line(facts), {"facts": facts})


def _reason(outcome: Outcome) -> dict[str, str]:
    """Return why a request was cancelled; nothing for any other request."""
    reason = Outcome(outcome).reason
    return {} if reason is None else {"reason": reason.value}


def _text_line(facts: dict[str, Any]) -> str:
    return "request " + " ".join(f"{key}={_shown(value)}" for key, value in facts.items())


def _json_line(facts: dict[str, Any]) -> str:
    # The time is in the line itself, so that the line is complete whatever a formatter adds.
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json.dumps({"time": now, **facts})


def _shown(value: object) -> str:
    """Return a value as one word, or in quotes with everything escaped as in JSON."""
    if value is None:
        return "-"
    text = f"{value:.6f}" if isinstance(value, float) else str(value)
    return text if _PLAIN.fullmatch(text) and text != "-" else json.dumps(text)
