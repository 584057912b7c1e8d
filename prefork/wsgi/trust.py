"""Which proxies a server of a WSGI application believes (``forwarded_from``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from prefork.edge.access import matcher
from prefork.edge.proxies import proxies_in
from prefork.wsgi.forwarded import READERS, Fields, Forwarded, forwarded_by

Trust = Callable[[Fields, Any], Forwarded | None]
"""Called with the fields of a head and the address of the client; see ``forwarded_by()``."""


def trust_of(proxies: Sequence[str] | None, kind: str, source: str) -> Trust | None:
    """Return what finds out for whom a request is; None for a server that believes no proxy.

    proxies: the value of ``forwarded_from``; source: where it came from, for errors. kind: the value of
    ``forwarded_fields``. SettingsError: a proxy cannot be used.
    """
    if not proxies:
        return None
    read = READERS[kind]
    is_proxy = matcher(proxies_in("forwarded_from", proxies, source))

    def trust(fields: Fields, peer: Any) -> Forwarded | None:
        return forwarded_by(fields, peer, is_proxy, read)

    return trust
