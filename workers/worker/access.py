"""The access log: one line for each request, written when the request is over (worker).

The lines go to the logger "prefork.access" at level INFO. A request that ends with its worker has no
line; the master logs the death of the worker.

The forms ``text`` and ``json`` are for any protocol, and say more where the handler has reported an answer of
HTTP. The forms ``common``, ``combined`` and ``timed`` are those of other web servers, for programs that read them
(workers/worker/web_lines.py).
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from prefork.workers import log
from prefork.workers.answers import Answer
from prefork.workers.listener import Listener
from prefork.workers.settings import Settings
from prefork.workers.slot_writer import Outcome, SlotWriter
from prefork.workers.text import cut_for_json
from prefork.workers.worker.clients import client_facts, client_name
from prefork.workers.worker.web_lines import combined_line, common_line, timed_line

logger = logging.getLogger("prefork.access")

LogRequest = Callable[[Listener, Any, int | None, Outcome, int, Answer | None], None]
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
    """The lines of one worker. form: as the setting ``access_log``, except "off"."""

    def __init__(self, form: str, slot: int, generation: int, writer: SlotWriter) -> None:
        self._line = _LINES[form]
        self._is_whole = form != "text"
        self._is_web = form in WEB_FORMS
        self._worker = {"slot": slot, "generation": generation}
        self._writer = writer

    def write(  # noqa: PLR0917 - what an account knows, in the order in which it learns of it
        self,
        listener: Listener,
        client_address: Any,
        waited_ns: int | None,
        outcome: Outcome,
        duration_ns: int,
        answer: Answer | None = None,
    ) -> None:
        """Log one request; raises nothing.

        waited_ns: nanoseconds in the kernel's queue, None for unknown. duration_ns: from the take to
        the end. answer: what a handler of HTTP has reported; None where there is no such report.
        """
        # A process that a handler has forked comes here, too. The request is its worker's.
        if not log.is_wanted(logger, logging.INFO) or self._writer.is_detached:
            return
        if answer is None and self._is_web:
            if outcome is Outcome.OK:
                return  # a connection on which its client has asked nothing
            answer = Answer()
        facts: dict[str, Any] = {
            **_client_facts(client_address),
            **_web_facts(answer, client_address),
            "duration": round(duration_ns / 1e9, 6),
            "queue_wait": None if waited_ns is None else round(waited_ns / 1e9, 6),
            "outcome": Outcome(outcome).word,
            **_reason(outcome),
            **self._worker,
            "listener": str(listener),
        }
        line = self._line(facts)
        log.emit(logger, logging.INFO, line, {"facts": facts, "is_whole": self._is_whole})


def _reason(outcome: Outcome) -> dict[str, str]:
    """Return why a request was cancelled; nothing for any other request."""
    reason = Outcome(outcome).reason
    return {} if reason is None else {"reason": reason.value}


def _client_facts(address: Any) -> dict[str, Any]:
    """Return what a line says of a client; None in place of a name for a client without one."""
    facts = client_facts(address)
    if facts["client"] == "-":
        facts["client"] = client_name(address)
    return facts


def _web_facts(answer: Answer | None, client_address: Any) -> dict[str, Any]:
    """Return what a line says of an answer of HTTP; nothing where there is none.

    The bounds keep a line below the 4096 bytes that a pipe takes as a whole.
    """
    if answer is None:
        return {}
    facts: dict[str, Any] = {}
    if answer.client is not None:
        facts = {"client": answer.client, "peer": client_name(client_address)}
    return facts | {
        "method": answer.method or None,
        "target": cut_for_json(answer.target, 1600) or None,
        "protocol": answer.protocol or None,
        "status": int(answer.status) if answer.status else None,
        "bytes": answer.sent,
        "referer": answer.referer and cut_for_json(answer.referer, 600),
        "user_agent": answer.user_agent and cut_for_json(answer.user_agent, 600),
    }


def _text_line(facts: Mapping[str, Any]) -> str:
    return "request " + " ".join(f"{key}={_shown(value)}" for key, value in facts.items())


def _json_line(facts: Mapping[str, Any]) -> str:
    # The time is in the line itself, so that the line is complete whatever a formatter adds.
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json.dumps({"time": now, **facts})


_LINES: Final[dict[str, Callable[[Mapping[str, Any]], str]]] = {
    "text": _text_line,
    "json": _json_line,
    "common": common_line,
    "combined": combined_line,
    "timed": timed_line,
}

WEB_FORMS: Final = frozenset({"common", "combined", "timed"})
"""The forms that only a request of HTTP has."""


def _shown(value: object) -> str:
    """Return a value as one word, or in quotes with everything escaped as in JSON."""
    if value is None:
        return "-"
    text = f"{value:.6f}" if isinstance(value, float) else str(value)
    return text if _PLAIN.fullmatch(text) and text != "-" else json.dumps(text)
