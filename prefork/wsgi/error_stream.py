"""``wsgi.errors``: a text file whose lines go to the log (worker).

``print("a", 1, file=environ["wsgi.errors"])`` writes a line in four pieces. A line is therefore logged when its
end is written. What has no end yet waits until the application calls ``flush()``, or until the request ends.
One stream serves all requests of a server, so the beginnings of lines are kept by thread.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from threading import get_ident
from typing import Final

from prefork.workers import log
from prefork.workers.worker.side import current_worker

MOST_WAITING: Final = 1 << 16
"""Characters of a line without an end that wait. A longer line is logged in several."""


class ErrorStream:
    """The stream of all requests of one server.

    begun: the beginnings of lines, by the thread that has written them; empty between requests.
    """

    def __init__(self) -> None:
        self.begun: dict[int, str] = {}

    def write(self, text: str) -> int:
        """Log the lines that this text completes, and keep what follows them."""
        thread = get_ident()
        whole, newline, rest = (self.begun.pop(thread, "") + text).rpartition("\n")
        if len(rest) > MOST_WAITING:
            whole, rest = f"{whole}{newline}{rest}", ""
        if rest:
            self.begun[thread] = rest
        _log(whole)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each of these texts, which bring their own ends of lines."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Log what this thread has written since its last whole line."""
        _log(self.begun.pop(get_ident(), ""))


def _log(text: str) -> None:
    for line in text.splitlines():
        if line.strip():
            log.event(
                logging.ERROR, str(current_worker() or "master"), "application says", text=line
            )
