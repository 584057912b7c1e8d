"""Refuse values that are well-formed and that this machine or this process cannot use.

The table of settings (workers/settings.py) checks a value by its form. This module asks the machine:
whether an account may be taken on, whether a folder exists. ``prefork check``, ``prefork run`` and
``serve_forever()`` call the same function, so that the command finds what a start would refuse. The
function runs before anything is bound or forked, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from prefork.edge.proxies import proxies_in
from prefork.host.addresses import Address
from prefork.host.endpoint import ENDPOINTS, endpoint_address
from prefork.metrics import slots
from prefork.workers import files, process_limits
from prefork.workers.credentials import credentials_for
from prefork.workers.errors import SettingsError


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
    folder = values.get("metrics_dir")
    source = origin("metrics_dir") if folder is not None else ""
    slots.refuse_unusable(folder, source, values.get("max_children") or 1)


def _refuse_without_proc(setting: str, text: str, source: str) -> None:
    if not files.has_proc():
        reason = "the metrics process reads /proc, which is not mounted here; mount it, or leave this out"
        raise SettingsError(setting, text, source, reason)
