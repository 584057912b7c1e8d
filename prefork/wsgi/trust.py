"""Which proxies a server of a WSGI application believes (``forwarded_from``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prefork.edge.access import matcher
from prefork.edge.proxies import proxies_in
from prefork.workers.errors import SettingsError
from prefork.workers.units import words
from prefork.wsgi.forwarded import READERS, Fields, Forwarded, forwarded_by

Trust = Callable[[Fields, Any], Forwarded | None]
"""Called with the fields of a head and the address of the client; see ``forwarded_by()``."""


def trust_of(server: Any) -> Trust | None:
    """Return what finds out for whom a request is; None for a server that believes no proxy.

    SettingsError: an attribute of the server cannot be used.
    """
    source = f"attribute {type(server).__name__}"
    kind = getattr(server, "forwarded_fields", "x-forwarded")
    read = READERS.get(kind)
    if read is None:
        raise SettingsError("forwarded_fields", kind, source, f"one of {', '.join(READERS)}")
    given: Any = getattr(server, "forwarded_from", None)
    if not given:
        return None
    texts: Any = words(given)
    is_proxy = matcher(proxies_in("forwarded_from", texts, source))

    def trust(fields: Fields, peer: Any) -> Forwarded | None:
        return forwarded_by(fields, peer, is_proxy, read)

    return trust
