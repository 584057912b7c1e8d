"""Refuse values that are well-formed and that this machine, this process or these servers cannot use.

The table of settings (workers/settings.py) checks a value by its form. This module asks the machine:
whether an account may be taken on, whether a folder exists. It also asks the servers: whether their
workers serve one client at a time. ``prefork check``, ``prefork run`` and ``serve_forever()`` call the
same functions, so that the command finds what a start would refuse. The functions run before anything
is bound or forked, and change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from socketserver import BaseRequestHandler, BaseServer
from typing import Any

import msgspec

from prefork.edge.proxies import proxies_in
from prefork.host.addresses import Address
from prefork.host.endpoint import ENDPOINTS, endpoint_address
from prefork.master.lot_process import refuse_too_many
from prefork.metrics import slots
from prefork.workers import files, process_limits
from prefork.workers.credentials import credentials_for
from prefork.workers.errors import SettingsError
from prefork.workers.worker.access import WEB_FORMS
from prefork.workers.worker.accounting import may_overlap, reports_answers


def refuse_unusable(values: Mapping[str, Any], origin: Callable[[str], str]) -> None:
    """Raise SettingsError for the first value that cannot be used.

    values: by key; a key that is missing or None is passed over. origin: returns the words for
    where the value of a key came from.
    """
    for text in values.get("bind") or ():
        Address.parse(text, origin("bind"))
    for setting in ENDPOINTS:
        if (text := values.get(setting)) is not None:
            endpoint_address(setting, text, origin(setting))
            _refuse_without_proc(setting, text, origin(setting))
    if (proxies := values.get("forwarded_from")) is not None:
        proxies_in("forwarded_from", proxies, origin("forwarded_from"))
    user, group = values.get("user"), values.get("group")
    if user is not None or group is not None:
        credentials_for(user, group, origin("user" if user is not None else "group"))
    process_limits.refuse_impossible(values, origin)
    if (most := values.get("max_parked")) is not None:
        refuse_too_many(most, origin("max_parked"))
    folder = values.get("metrics_dir")
    source = origin("metrics_dir") if folder is not None else ""
    slots.refuse_unusable(folder, source, values.get("max_children") or 1)


def _refuse_without_proc(setting: str, text: str, source: str) -> None:
    if not files.has_proc():
        reason = "the metrics process reads /proc, which is not mounted here; mount it, or leave this out"
        raise SettingsError(setting, text, source, reason)


class ServerKind(msgspec.Struct, frozen=True):
    """What settings may depend on of a server, as far as it is known before the server is made.

    overlaps: a worker may serve several requests at a time. reports: the handlers report what they answer,
    as those of WSGI applications do; None where that is not known yet.
    """

    overlaps: bool = False
    reports: bool | None = False


def kind_of(server: BaseServer) -> ServerKind:
    """Return what settings may depend on of a server object."""
    return ServerKind(may_overlap(type(server)), reports_answers(server.RequestHandlerClass))


def kind_of_class(cls: type[BaseServer]) -> ServerKind:
    """Return what settings may depend on of the servers of a class."""
    handler = getattr(cls, "RequestHandlerClass", None)
    is_known = isinstance(handler, type) and issubclass(handler, BaseRequestHandler)
    return ServerKind(may_overlap(cls), reports_answers(handler) if is_known else None)


def refuse_unfit(
    values: Mapping[str, Any], origin: Callable[[str], str], kinds: Sequence[ServerKind]
) -> None:
    """Raise SettingsError for the first value that does not fit the servers of the pool.

    values, origin: as for ``refuse_unusable()``. kinds: of all servers; empty where nothing is known of them.
    """
    overlaps = any(kind.overlaps for kind in kinds)
    if overlaps and values.get("agent") is not None and values["agent_mode"] == "maxconn":
        allowed = (
            "weight for this server: with maxconn HAProxy sends one connection for each worker, and a worker "
            "of this server serves several, because process_request() is overridden, as in ThreadingMixIn"
        )
        raise SettingsError("agent_mode", values["agent_mode"], origin("agent_mode"), allowed)
    most = values.get("max_per_client")
    if overlaps and most is not None:
        allowed = (
            "it counts workers by their client, and a worker of this server serves several clients at a "
            "time, because process_request() is overridden, as in ThreadingMixIn; leave it out"
        )
        raise SettingsError("max_per_client", most, origin("max_per_client"), allowed)
    form = values.get("access_log")
    if form in WEB_FORMS and kinds and all(kind.reports is False for kind in kinds):
        allowed = (
            "it is a format for requests of HTTP, and none of these servers serves a WSGI application; use text "
            "or json"
        )
        raise SettingsError("access_log", form, origin("access_log"), allowed)
