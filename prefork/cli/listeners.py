"""``[[listener]]`` tables: addresses with settings of their own for who may connect.

A pool can have one port for the world, with TLS, and another for its own network, without::

    [[listener]]
    bind = "0.0.0.0:9443"
    tls_certificate = "server.pem"

    [[listener]]
    bind = "10.0.0.1:9000"
    allow = "10.0.0.0/8"

A table takes ``bind`` and the settings of the edge. What it leaves out comes from the settings of the
whole file. An empty value switches off what the whole file switches on. The environment and flags are
stronger than a table, as they are stronger than the rest of the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from prefork.edge.setup import KEYS
from prefork.workers.errors import SettingsError
from prefork.workers.layers import Layer
from prefork.workers.settings import ROWS
from prefork.workers.text import nearest

KEY: Final = "listener"
"""The name of the tables in the file."""


class ListenerTable(msgspec.Struct, frozen=True):
    """One table. bind: raw, as in the file. values: raw, of the edge's settings. origin: for messages."""

    bind: Any
    values: Mapping[str, Any]
    origin: str

    @property
    def layer(self) -> Layer:
        """The settings of the edge as a layer."""
        return Layer(self.values, lambda _key: self.origin)


def take_tables(content: dict[str, Any], name: str) -> tuple[ListenerTable, ...]:
    """Take the tables out of what a file says, and put all their addresses there as ``bind``.

    name: of the file, for messages. SettingsError: a table has no address, or a key that it cannot have.
    """
    tables = content.pop(KEY, None)
    if tables is None:
        return ()
    if not isinstance(tables, list) or not all(isinstance(one, dict) for one in tables):
        raise SettingsError(KEY, tables, name, "it is a list of tables, written as [[listener]]")
    if "bind" in content:
        reason = (
            "the tables [[listener]] say where to listen; move this address into a table of its own"
        )
        raise SettingsError("bind", content["bind"], name, reason)
    found = tuple(
        _table(table, f"{name} [[listener]] {number}") for number, table in enumerate(tables, 1)
    )
    content["bind"] = [text for one in found for text in _words(one.bind)]
    return found


def _table(table: dict[str, Any], origin: str) -> ListenerTable:
    for key in table.keys() - {"bind", *KEYS}:
        guess = nearest(key, ["bind", *KEYS])
        reason = f"did you mean {guess}?" if guess else f"a listener has bind, {', '.join(KEYS)}"
        raise SettingsError(key, table[key], origin, f"no such setting of a listener; {reason}")
    if not table.get("bind"):
        raise SettingsError("bind", table.get("bind"), origin, ROWS["bind"].about.allowed)
    values = {key: None if raw in ("", []) else raw for key, raw in table.items() if key != "bind"}
    return ListenerTable(table["bind"], values, origin)


def _words(raw: Any) -> list[Any]:
    """Return the addresses of a table; a value of another type is refused later, with its origin."""
    read = ROWS["bind"].about.read(raw)
    return read if isinstance(read, list) else [read]


def refuse_other_binds(tables: tuple[ListenerTable, ...], bind: object, origin: str) -> None:
    """Raise SettingsError where a flag or the environment says where to listen, beside the tables."""
    if tables and not tables[0].origin.startswith(f"{origin} "):
        reason = f"{tables[0].origin} and others say where to listen; leave one of them out"
        raise SettingsError("bind", bind, origin, reason)
