"""From the settings of a server to its edge: what is checked, and which steps there are (master).

A server of a pool, or one with a mix-in of ``mixins.py``, is made ready by ``prepare()``: when it
is made, and again when it begins to serve. Whatever cannot be used is refused there, before
anything is forked, and before anything is bound where the class has the settings. The second call
does nothing while the settings are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from prefork.edge.authentication import authentication_step
from prefork.edge.edge import Edge, Refusals, Step, edge_of, install, remove
from prefork.workers.errors import SettingsError
from prefork.workers.settings import ROWS

KEYS: Final = ("edge_timeout",)
"""The settings of the edge, in the table of settings."""


class EdgeSettings(msgspec.Struct, frozen=True):
    """The settings of the edge of one server, each checked by its form.

    values: by key. origins: the words for where each came from. authenticates: whether the server has
    a method ``authenticate()``.
    """

    values: Mapping[str, Any]
    origins: Mapping[str, str]
    authenticates: bool = False

    def same_as(self, other: Any) -> bool:
        """Return whether the same edge would be made."""
        return (
            isinstance(other, EdgeSettings)
            and self.values == other.values
            and self.authenticates == other.authenticates
        )


def prepare(server: Any, *, serves: bool = True) -> None:
    """Give a server object the edge that its attributes ask for. SettingsError: one cannot be used.

    serves: the server begins to serve. Before that, attributes may still be missing.
    """
    settings = settings_of(server)
    if serves:
        _refuse_unprotected(server, settings)
    edge = edge_of(server)
    if edge is not None and settings.same_as(edge.made_from):
        return
    remove(server)
    made = make_edge(settings, server)
    if made is not None:
        install(server, made)


def settings_of(server: Any) -> EdgeSettings:
    """Return what the attributes of a server ask for; SettingsError for a value that cannot be."""
    values, origins = {}, {}
    for key in KEYS:
        row = ROWS[key]
        name = row.attribute or key
        origins[key] = f"attribute {type(server).__name__}.{name}"
        # While the object is made, a property may ask for what __init__() has not set yet.
        raw = getattr(server, name, row.default)
        values[key] = raw if raw is row.default else row.converted(raw, origins[key])
    return EdgeSettings(values, origins, callable(getattr(server, "authenticate", None)))


def make_edge(settings: EdgeSettings, server: Any) -> Edge | None:
    """Return the edge of these settings, None where none of its parts is asked for.

    SettingsError: a value cannot be used, or not for this server.
    """
    steps: list[Step] = []
    if settings.authenticates:
        steps.append(authentication_step(server))
    if not steps:
        return None
    return Edge(settings.values["edge_timeout"], steps, Refusals(), made_from=settings)


def _refuse_unprotected(server: Any, settings: EdgeSettings) -> None:
    """Refuse a server with a mix-in whose settings are missing: it would serve without protection."""
    for cls in type(server).__mro__:
        needs = vars(cls).get("needs", ())
        if needs and not any(settings.values.get(key) for key in needs):
            raise SettingsError(
                needs[0],
                settings.values.get(needs[0]),
                settings.origins[needs[0]],
                f"{cls.__name__} needs {' or '.join(needs)}; set it, or leave the mix-in out",
            )
