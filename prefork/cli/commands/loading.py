"""Read settings, import the target and check both together, for ``run``, ``check`` and ``config``."""

from __future__ import annotations

import os
from socketserver import BaseServer
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from prefork.cli import sources
from prefork.cli.edges import edge_of_instance, edges_for, refuse_unusable_anywhere
from prefork.cli.listeners import refuse_other_binds
from prefork.cli.pidfile import PidFile
from prefork.cli.serve_plan import Requested, ServePlan, is_application, plan
from prefork.cli.target import load
from prefork.cli.watch import refuse_where_impossible
from prefork.host.addresses import Address
from prefork.host.endpoint import ENDPOINTS, endpoint_address
from prefork.host.process import process
from prefork.host.unbindable import refuse_unbindable
from prefork.metrics import slots
from prefork.usable import ServerKind, refuse_unfit, refuse_unusable
from prefork.workers.errors import SettingsError
from prefork.workers.kernel import refuse_without_calls
from prefork.workers.layers import DEFAULT, Layer, Resolved, attributes_layer, merge, resolve
from prefork.workers.pool.before_fork import refuse_threads
from prefork.workers.settings import ROWS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from prefork.cli.listeners import ListenerTable
    from prefork.edge.setup import EdgeSettings

LIMITS: Final = (
    *("limit_head", "limit_fields", "limit_body"),
    *("forwarded_from", "forwarded_fields"),
)
"""The settings that servers of WSGI applications have as attributes."""


class SettingsSoFar(msgspec.Struct, frozen=True):
    """The settings before the target is loaded: what flags, environment and file say.

    layers: weakest first. values, origins: by key; each value is checked on its own. file: the settings file,
    which may name the target.
    """

    file: sources.File
    layers: list[Layer]
    values: Mapping[str, Any]
    origins: Mapping[str, str]

    def value(self, key: str) -> Any:
        """Return the value of a setting, the default where neither flag, environment nor file has one."""
        return self.values.get(key, ROWS[key].default)

    def what_to_serve(self, target: str | None, *, factory: bool) -> tuple[str, bool]:
        """Return the target, and whether it is a factory. The command line is stronger than the file.

        target, factory: of the command line. UsageError: neither names a target.
        """
        if target is not None:
            return target, factory
        if self.file.target is None:
            raise click.UsageError(
                "Missing argument 'TARGET': name it here, such as app:Handler, or as target in prefork.toml.",
                click.get_current_context(silent=True),
            )
        return self.file.target, factory or self.file.factory


OF_APPLICATIONS: Final = {"park_new": True, "defer_accept": 1.0}
"""What is the default for WSGI applications alone, as for ``WSGIServer``.

A client of HTTP speaks first, so a client that says nothing need not hold a worker. The kernel keeps the
connection for a second. This spares the way through the lot to the clients that speak at once.
"""


def read_settings(flags: Mapping[str, object], config: str | None) -> SettingsSoFar:
    """Return the settings of flags, environment and file.

    flags: key to raw value. config: the value of ``--config``. SettingsError: a value is wrong. The
    application is not imported before its settings are known to be right.
    """
    file = sources.read_file(config, os.environ)
    layers = sources.layers(flags, os.environ, file)
    values, origins = merge(layers)
    for text in values.get("bind", ()):
        Address.parse(text, origins["bind"])
    return SettingsSoFar(file, layers, values, origins)


def refuse_before_loading(given: SettingsSoFar) -> None:
    """Refuse what cannot be used of flags, environment and file (``run`` and ``check``).

    SettingsError: the first such value.
    """
    _refuse(given.values, given.origins)


def refuse_before_binding(resolved: Resolved, planned: ServePlan, *, watch: bool) -> None:
    """Refuse what cannot be served, now that the application is loaded (``run`` and ``check``).

    Both commands call this function, so ``check`` finds whatever ``run`` would refuse before it
    binds anything. SettingsError: a value cannot be used. BootError: the application has started
    threads, and ``fork_check`` refuses them. BindError: an address certainly cannot be bound. PreforkError:
    the kernel refuses what a pool needs.
    """
    _refuse(msgspec.structs.asdict(resolved.settings), resolved.origins)
    refuse_for_servers(resolved, planned.kinds)
    refuse_unbindable(planned.addresses, _endpoints(resolved))
    if watch:
        refuse_where_impossible(resolved.settings.workers)
    if resolved.settings.workers:
        refuse_without_calls()
        refuse_threads(resolved.settings)


def _endpoints(resolved: Resolved) -> dict[str, Address]:
    """Return where the metrics process is going to listen, by setting."""
    texts = {key: getattr(resolved.settings, key) for key in ENDPOINTS}
    return {
        key: endpoint_address(key, text, resolved.origins[key])
        for key, text in texts.items()
        if text is not None
    }


def refuse_for_servers(resolved: Resolved, kinds: Sequence[ServerKind]) -> None:
    """Raise SettingsError for the first value that does not fit the servers of the pool."""
    refuse_unfit(msgspec.structs.asdict(resolved.settings), resolved.origins.__getitem__, kinds)


def _refuse(values: Mapping[str, Any], origins: Mapping[str, str]) -> None:
    refuse_unusable(values, origins.__getitem__)
    if (path := values.get("pidfile")) is not None:
        PidFile(path, origins["pidfile"]).refuse_unusable()


def ignored_sources(config: str | None) -> list[str]:
    """Return a warning for each environment variable that seems to be misspelt, and for a file that is not read.

    config: the value of ``--config``.
    """
    said = [
        f"ignores the environment variable {name}; did you mean {guess}?"
        for name, guess in sources.misspelt(os.environ)
    ]
    if sources.shadowed(config, os.environ):
        said.append("ignores [tool.prefork] of pyproject.toml; prefork.toml is read instead")
    return said


def spare_the_metrics_directory() -> None:
    """Make an application that is loaded and not served keep its metrics in memory.

    The directory of PROMETHEUS_MULTIPROC_DIR may be the one of a running pool.
    """
    os.environ.pop(slots.VARIABLE, None)


def resolved_with(attributes: Sequence[Layer], layers: list[Layer]) -> Resolved:
    """Return the settings that follow from all layers.

    attributes: layers of the application, which are stronger than the command line's own defaults
    and weaker than ``layers``. SettingsError: a value is wrong, or two settings contradict each
    other.
    """
    return resolve([sources.OWN_DEFAULTS, *attributes, *layers])


def load_and_plan(
    target: str, given: SettingsSoFar, *, factory: bool
) -> tuple[Resolved, ServePlan]:
    """Import the target, and return the settings and how it is served. Nothing is bound.

    SettingsError, TargetError: settings or target are wrong. BootError, BindError: see ``load()``.
    """
    found = load(target)
    attributes = _attributes_of(found)
    resolved = resolved_with(attributes, given.layers)
    settings, origins = resolved.settings, resolved.origins
    refuse_other_binds(given.file.listeners, settings.bind, origins["bind"])
    addresses, edges = _places(found, resolved, given, factory=factory)
    requested = Requested(
        addresses=addresses,
        edges=edges,
        binds_from=_unless_default(origins["bind"]),
        backlog=settings.backlog,
        backlog_from=_unless_default(origins["backlog"]),
        limits={key: given.values[key] for key in LIMITS if key in given.values},
    )
    refuse_several_without_workers(resolved, len(requested.addresses))
    return resolved, plan(target, found, requested, factory=factory)


def _places(
    found: object, resolved: Resolved, given: SettingsSoFar, *, factory: bool
) -> tuple[list[Address], list[EdgeSettings]]:
    """Return where to listen, and who may connect there.

    What a factory will return has attributes of its own, so nothing can be said of its edges yet.
    """
    makes_its_own = factory or isinstance(found, BaseServer)
    if makes_its_own:
        _refuse_tables(given.file.listeners)
    if not given.file.listeners:
        addresses = _addresses(resolved.settings.bind, resolved.origins["bind"])
        if factory:
            refuse_unusable_anywhere(resolved)
            return addresses, []
        if makes_its_own:
            return addresses, [edge_of_instance(resolved, found)]
        return addresses, edges_for(resolved, addresses)
    attributes = _attributes_of(found)
    places: tuple[list[Address], list[EdgeSettings]] = [], []
    file, *stronger = given.layers
    for table in given.file.listeners:
        own = resolved_with(attributes, [file, table.layer, *stronger])
        bind = ROWS["bind"].converted(table.bind, table.origin)
        addresses = _addresses(bind, table.origin)
        places[0].extend(addresses)
        places[1].extend(edges_for(own, addresses))
    return places


def _refuse_tables(tables: Sequence[ListenerTable]) -> None:
    """Raise SettingsError for ``[[listener]]`` tables with a target that makes its own servers."""
    if tables:
        reason = (
            "this target makes its own servers; give these their attributes, and remove the tables"
        )
        raise SettingsError("listener", len(tables), tables[0].origin, reason)


def _addresses(bind: Sequence[str], origin: str) -> list[Address]:
    """Return where to listen.

    The default is the sockets that systemd has handed over, where there are some.
    """
    if origin == DEFAULT and (handed_over := process.systemd_sockets.addresses()):
        return handed_over
    return process.systemd_sockets.expanded([Address.parse(text, origin) for text in bind])


def _attributes_of(found: object) -> list[Layer]:
    """Return the layer of a server class or instance, or of a WSGI application.

    A handler class has no settings. Those of the servers that a factory returns are read after
    ``build()``.
    """
    if is_application(found):
        return [Layer(OF_APPLICATIONS, lambda _key: "the default for WSGI applications")]
    is_server = isinstance(found, BaseServer) or (
        isinstance(found, type) and issubclass(found, BaseServer)
    )
    return [attributes_layer(found)] if is_server else []


def _unless_default(origin: str) -> str | None:
    return None if origin == DEFAULT else origin


def refuse_several_without_workers(resolved: Resolved, count: int) -> None:
    """Raise SettingsError for ``workers = 0`` with several servers.

    Without workers the loop of the standard library serves, and that serves one server only.
    """
    if resolved.settings.workers == 0 and count > 1:
        allowed = (
            f"without workers only one address can be served, not {count}; give one, or use workers"
        )
        raise SettingsError("workers", 0, resolved.origins["workers"], allowed)
