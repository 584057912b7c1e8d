"""What a server of a WSGI application allows: its limits, and the proxies that it believes."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from prefork.edge.setup import settings_of
from prefork.workers.layers import of_one_server
from prefork.workers.settings import Settings
from prefork.wsgi.trust import Trust, trust_of

_KEYS: Final = (
    *("limit_head", "limit_fields", "limit_body"),
    *("forwarded_from", "forwarded_fields"),
)
"""The settings of which each server of a WSGI application has its own, in the table of settings."""


class Limits(msgspec.Struct, frozen=True):
    """What a server allows.

    head: bytes of a head. fields: of a head. body: bytes of a body; None for any number. head_time: seconds
    for a head. trust: finds out for whom a request is; None for a server that believes no proxy.
    """

    head: int
    fields: int
    body: int | None
    head_time: float
    trust: Trust | None


def limits_of(server: Any, given: Settings | None) -> Limits:
    """Return what a server allows. SettingsError: a value cannot be used.

    given: the settings of the pool, where the program has given some; they count where the server has
    nothing to say itself.
    """
    values, origins = of_one_server(server, _KEYS, given)
    return Limits(
        head=values["limit_head"],
        fields=values["limit_fields"],
        body=values["limit_body"],
        head_time=settings_of(server, given).values["edge_timeout"],
        trust=trust_of(
            values["forwarded_from"], values["forwarded_fields"], origins["forwarded_from"]
        ),
    )
