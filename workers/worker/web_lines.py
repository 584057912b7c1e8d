r"""Lines of the access log in the formats of other web servers, which many programs read (worker).

``common`` and ``combined`` are the formats that Apache's httpd has by these names, byte for byte:

    192.0.2.7 - alice [29/Nov/2026:13:55:36 +0000] "GET /a HTTP/1.1" 200 2326 "https://example/" "curl/8"

``timed`` is ``combined``, followed by duration and queue wait in seconds, as many people configure their servers.

Whatever a client sends stays within its field: quotation marks and backslashes are escaped by a backslash, and
control characters and bytes above 126 as ``\xhh``, as httpd does.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from time import gmtime, time
from typing import Any, Final

_MONTHS: Final = (
    "Jan",
    "Feb",
    "Mar",
    "Apr",
    "May",
    "Jun",
    "Jul",
    "Aug",
    "Sep",
    "Oct",
    "Nov",
    "Dec",
)

_SPECIAL: Final = re.compile(r"[^ !#-\[\]-~]")
_SPECIAL_IN_WORD: Final = re.compile(r"[^!#-\[\]-~]")


def common_line(facts: Mapping[str, Any]) -> str:
    """Return the line of one request. facts: as the JSON line has them."""
    parts = (facts["method"], facts["target"], facts["protocol"])
    request = " ".join(part for part in parts if part)
    status = "-" if facts["status"] is None else facts["status"]
    return (
        f"{_host(facts['client'])} - {_word(facts.get('identity'))} [{_shown_time(int(time()))}] {_quoted(request)} {status} "
        f"{facts['bytes']}"
    )


def combined_line(facts: Mapping[str, Any]) -> str:
    """Return the line of one request, with its fields Referer and User-Agent."""
    return f"{common_line(facts)} {_quoted(facts['referer'])} {_quoted(facts['user_agent'])}"


def timed_line(facts: Mapping[str, Any]) -> str:
    """Return the line of one request, followed by duration and queue wait in seconds."""
    wait = facts["queue_wait"]
    waited = "-" if wait is None else f"{wait:.6f}"
    return f"{combined_line(facts)} {facts['duration']:.6f} {waited}"


def _host(client: str | None) -> str:
    """Return a client's name without its port."""
    host = client or ""
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    return _word(host)


def _word(text: str | None) -> str:
    return _SPECIAL_IN_WORD.sub(_escape, text) if text else "-"


def _quoted(text: str | None) -> str:
    return f'"{_SPECIAL.sub(_escape, text)}"' if text else '"-"'


def _escape(found: re.Match[str]) -> str:
    character = found[0]
    if character in '"\\':
        return f"\\{character}"
    # Fields of a head are decoded as Latin-1, so that a character stands for a byte.
    if character <= "\xff":
        data = character.encode("latin-1")
    else:  # half of a surrogate pair stands for a byte that was no UTF-8, or is in the text itself
        is_byte = "\udc80" <= character <= "\udcff"
        data = character.encode("utf-8", "surrogateescape" if is_byte else "surrogatepass")
    return "".join(f"\\x{byte:02x}" for byte in data)


@functools.lru_cache(maxsize=1)
def _shown_time(second: int) -> str:
    """Return a Unix time as these formats write it, in UTC."""
    at = gmtime(second)
    clock = f"{at.tm_hour:02}:{at.tm_min:02}:{at.tm_sec:02}"
    return f"{at.tm_mday:02}/{_MONTHS[at.tm_mon - 1]}/{at.tm_year}:{clock} +0000"
