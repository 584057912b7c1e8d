"""How often a client has failed to authenticate within the last minute (pure)."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from ipaddress import IPv6Address
from typing import Any, Final

WINDOW: Final = 60.0
"""Seconds for which a failure counts."""

MOST_CLIENTS: Final = 10_000
"""Clients that are remembered. The one whose first failure is the oldest is forgotten first."""


class Failures:
    """The failures of one process. most: failures of one client within a minute; None for no bound."""

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._by_client: dict[Hashable, deque[float]] = {}

    def is_too_many(self, client: Hashable, now: float) -> bool:
        """Return whether a client has failed so often that it is not asked again. now: monotonic seconds."""
        instants = self._by_client.get(client)
        if self._most is None or instants is None:
            return False
        while instants and instants[0] <= now - WINDOW:
            instants.popleft()
        if not instants:
            self._by_client.pop(client, None)
        return len(instants) >= self._most

    def note(self, client: Hashable, now: float) -> None:
        """Note that a client has failed."""
        if self._most is None:
            return
        if client not in self._by_client and len(self._by_client) >= MOST_CLIENTS:
            del self._by_client[next(iter(self._by_client))]
        instants = self._by_client.setdefault(client, deque(maxlen=self._most))
        instants.append(now)


def client_key(address: Any, uid: int | None) -> Hashable:
    """Return what counts as one client: an IPv4 address, a network of IPv6 (/64), or a user of this machine.

    One client of IPv6 usually has a whole /64 to choose its addresses from.
    """
    if not isinstance(address, tuple) or not address:
        return ("uid", uid)
    host = str(address[0]).partition("%")[0]
    if ":" not in host:
        return host
    try:
        packed = IPv6Address(host)
    except ValueError:
        return host
    mapped = packed.ipv4_mapped
    return str(mapped) if mapped is not None else packed.packed[:8]
