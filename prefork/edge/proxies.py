"""The networks of proxies in a setting, checked (master, and a worker for a server of its own)."""

from __future__ import annotations

from collections.abc import Iterable

from prefork.edge.access import Rule, parse_rule
from prefork.workers.errors import SettingsError


def proxies_in(key: str, texts: Iterable[str], source: str) -> tuple[Rule, ...]:
    """Return the rules for the proxies that a setting names. SettingsError: a text names none.

    key: of the setting. source: the words for where its value came from.
    """
    rules = []
    for text in texts:
        try:
            rule = parse_rule(text)
        except ValueError as error:
            raise SettingsError(key, text, source, str(error)) from None
        if rule.kind == "accounts":
            reason = "all peers of a Unix socket are proxies, or none is; write unix"
            raise SettingsError(key, text, source, reason)
        rules.append(rule)
    return tuple(rules)
