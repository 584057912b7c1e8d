"""The edge of each server that the command line makes: its settings, checked before anything is bound."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args

import msgspec

from prefork.edge import setup
from prefork.edge.access import BEHIND_A_PROXY, Kind, parse_rule
from prefork.edge.setup import (
    CONFIGURED,
    KEYS,
    EdgeSettings,
    Place,
    check,
    configure,
    unix_kinds,
)
from prefork.workers.layers import Layer, Resolved, attributes_layer, resolve

if TYPE_CHECKING:
    from prefork.host.addresses import Address


def edge_settings(resolved: Resolved) -> EdgeSettings:
    """Return the settings of the edge among all settings."""
    values = {key: getattr(resolved.settings, key) for key in KEYS}
    return EdgeSettings(values, {key: resolved.origins[key] for key in KEYS})


def edges_for(resolved: Resolved, addresses: Sequence[Address]) -> list[EdgeSettings]:
    """Return the settings of the edge for each address.

    Rules that are for another kind of address are left out, so that networks and accounts can be given
    together. SettingsError: a value cannot be used, or a rule concerns none of the addresses.
    """
    settings = edge_settings(resolved)
    places = [place_of(address) for address in addresses]
    # The proxies first: rules can go by other things behind one.
    found = _fitted(("proxy_from",), [settings] * len(places), [one.kinds for one in places])
    kinds = [
        BEHIND_A_PROXY if one.values["proxy_from"] else place.kinds
        for one, place in zip(found, places, strict=True)
    ]
    found = _fitted(("allow", "deny"), found, kinds)
    for address, place, fitted in zip(addresses, places, found, strict=True):
        if settings.values["allow"] and not fitted.values["allow"]:
            reason = (
                f"none of its rules concerns a client of {address}, which would refuse everybody"
            )
            raise settings.error("allow", reason)
        check(fitted, place)
    return found


def edge_of_instance(resolved: Resolved, server: Any) -> EdgeSettings:
    """Return the settings of the edge of a server that has an address already.

    SettingsError: a value cannot be used for this server. A method ``tls_context`` is not called.
    """
    settings = edge_settings(resolved)
    context = getattr(server, "tls_context", None)
    check(settings, setup.place_of(server), None if callable(context) else context)
    return settings


def refuse_unusable_anywhere(resolved: Resolved) -> None:
    """Raise SettingsError for a value that no server could use, before a factory is called."""
    settings = edge_settings(resolved)
    values = dict(settings.values)
    if not values["tls_certificate"]:  # the server that the factory makes may have one
        values |= dict.fromkeys(key for key in values if key.startswith("tls_"))
    check(msgspec.structs.replace(settings, values=values), Place(get_args(Kind)))


def configure_all(servers: Sequence[Any], layers: list[Layer]) -> None:
    """Give settings to the servers that have not got them yet: those that a factory has made."""
    for server in servers:
        if CONFIGURED not in vars(server):
            configure(server, edge_settings(resolve([attributes_layer(server), *layers])))


def place_of(address: Address) -> Place:
    """Return what the edge has to know of an address."""
    is_datagram = address.scheme in ("udp", "unixgram")
    if address.scheme in ("unix", "unixgram"):
        return Place(unix_kinds(is_datagram=is_datagram), is_datagram)
    if address.is_bound:
        return Place(get_args(Kind), is_datagram)
    return Place(_internet_kinds(address.host), is_datagram)


def _internet_kinds(host: str) -> Sequence[Kind]:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return ("IPv4", "IPv6")  # a name
    if address.version == 4:
        return ("IPv4",)
    return ("IPv4", "IPv6") if address.is_unspecified else ("IPv6",)


def _fitted(
    keys: Sequence[str], settings: Sequence[EdgeSettings], kinds: Sequence[Sequence[Kind]]
) -> list[EdgeSettings]:
    """Return the settings of each address without the rules that only other addresses are concerned with.

    keys: of the rules. settings, kinds: of each address; what rules can go by there.
    """
    anywhere = {kind for there in kinds for kind in there}
    found = []
    for one, there in zip(settings, kinds, strict=True):
        elsewhere = anywhere.difference(there)
        values = dict(one.values)
        for key in keys:
            if values[key]:
                values[key] = tuple(text for text in values[key] if _kind_of(text) not in elsewhere)
        found.append(msgspec.structs.replace(one, values=values))
    return found


def _kind_of(text: str) -> Kind | None:
    try:
        return parse_rule(text).kind
    except ValueError:
        return None  # check() says what is wrong with it
