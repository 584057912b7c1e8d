"""Settings and target, read and checked together: what ``run``, ``check`` and ``config`` share."""

from __future__ import annotations

import os
from socketserver import BaseServer
from typing import TYPE_CHECKING, Any

import msgspec

from prefork.cli import sources
from prefork.cli.serve_plan import Requested, ServePlan, plan
from prefork.cli.target import load
from prefork.host import systemd_sockets
from prefork.host.addresses import Address
from prefork.metrics import slots
from prefork.workers.errors import SettingsError
from prefork.workers.layers import DEFAULT, Layer, Resolved, attributes_layer, merge, resolve
from prefork.workers.settings import ROWS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class SettingsSoFar(msgspec.Struct, frozen=True):
    """What flags, environment and file say, each value checked on its own; the target's word is not known yet."""

    layers: list[Layer]
    values: Mapping[str, Any]
    origins: Mapping[str, str]

    def value(self, key: str) -> Any:
        """Return a setting as far as it is known before the target is load_and_plan."""
        return self.values.get(key, ROWS[key].default)


def read_settings(flags: Mapping[str, object], config: str | None) -> SettingsSoFar:
    """Collect what was set, and refuse what is wrong before any application is imported."""
    layers = sources.layers(flags, os.environ, config)
    values, origins = merge(layers)
    for text in values.get("bind", ()):
        Address.parse(text, origins["bind"])
    return SettingsSoFar(layers, values, origins)


def misspelt_variables() -> list[str]:
    """Say of each variable that looks like one of ours that it is ignored."""
    return [
        f"ignores {name}; did you mean {guess}?" for name, guess in sources.misspelt(os.environ)
    ]


def spare_the_metrics_directory() -> None:
    """Have an application that is only looked at keep its metrics in memory: the directory may be a running pool's."""
    os.environ.pop(slots.VARIABLE, None)


def resolved_with(attributes: Sequence[Layer], layers: list[Layer]) -> Resolved:
    """Resolve all layers: what an application says itself stands above the command line's own default."""
    return resolve([sources.OWN_DEFAULTS, *attributes, *layers])


def load_and_plan(target: str, layers: list[Layer], *, factory: bool) -> tuple[Resolved, ServePlan]:
    """Import the target, and check it and the settings together."""
    found = load(target)
    resolved = resolved_with(_attributes_of(found), layers)
    settings, origins = resolved.settings, resolved.origins
    requested = Requested(
        addresses=_addresses(settings.bind, origins["bind"]),
        binds_from=_unless_default(origins["bind"]),
        backlog=settings.backlog,
        backlog_from=_unless_default(origins["backlog"]),
    )
    refuse_several_without_workers(resolved, len(requested.addresses))
    return resolved, plan(target, found, requested, factory=factory)


def _addresses(bind: Sequence[str], origin: str) -> list[Address]:
    """Return where to listen: where nobody says it, on what systemd has handed over."""
    if origin == DEFAULT and (handed_over := systemd_sockets.addresses()):
        return handed_over
    return systemd_sockets.expanded([Address.parse(text, origin) for text in bind])


def _attributes_of(found: object) -> list[Layer]:
    """Read settings of a server class or instance; a handler has none, a factory's come later."""
    is_server = isinstance(found, BaseServer) or (
        isinstance(found, type) and issubclass(found, BaseServer)
    )
    return [attributes_layer(found)] if is_server else []


def _unless_default(origin: str) -> str | None:
    return None if origin == DEFAULT else origin


def refuse_several_without_workers(resolved: Resolved, count: int) -> None:
    """Refuse ``workers = 0`` for several servers: the plain loop of the standard library serves one."""
    if resolved.settings.workers == 0 and count > 1:
        allowed = f"without workers one server can be served, not {count}; give it one address"
        raise SettingsError("workers", 0, resolved.origins["workers"], allowed)
