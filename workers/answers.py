"""The answers of HTTP, as the scoreboard counts them and the access log shows them (a leaf).

A request has one answer. The worker that has sent the answer counts it by the method of the request and
by the class of the status. Both sets are fixed, so that no client can make the scoreboard or the metrics
grow: a method that is not in the list counts as OTHER.
"""

from __future__ import annotations

from typing import Final

import msgspec

OTHER: Final = "OTHER"
"""The method of all requests whose method is not in the list or could not be read."""

METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", OTHER)
"""The methods that are counted apart, in the order of their words on the scoreboard."""

CLASSES: Final = ("2xx", "3xx", "4xx", "5xx")
"""The classes of the status, in the order of their words on the scoreboard."""

COUNTS: Final = len(METHODS) * len(CLASSES)
"""How many counts there are: one for each method and class, all classes of a method together."""

_ROWS: Final = {method: row * len(CLASSES) for row, method in enumerate(METHODS)}
_LAST_ROW: Final = _ROWS[OTHER]
_COLUMNS: Final = {"2": 0, "3": 1, "4": 2}


def place_of(method: str, status: str) -> int:
    """Return the place of an answer among the counts.

    status: begins with the three digits. A client takes a status above 599 for an error of the server (RFC 9110,
    section 15), so these count as 5xx.
    """
    return _ROWS.get(method, _LAST_ROW) + _COLUMNS.get(status[0], 3)


class Answer(msgspec.Struct, frozen=True):
    """What the access log says of one request of HTTP and its answer.

    method, target, protocol: the three parts of the request line, "" where the request could not be read.
    status: three digits, "" where no answer was sent. sent: bytes of the body that were sent. client: for whom
    the request is, where a proxy has said so in a field of the head; None for the client of the
    connection. referer, user_agent: the fields of that name, None without them.

    All text is what the client has sent, decoded as Latin-1: only the log escapes it.
    """

    method: str = ""
    target: str = ""
    protocol: str = ""
    status: str = ""
    sent: int = 0
    client: str | None = None
    referer: str | None = None
    user_agent: str | None = None
