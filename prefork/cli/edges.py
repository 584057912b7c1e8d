"""The edge of each server that the command line makes: its settings, checked before anything is bound."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args

import msgspec

from prefork.edge.access import Kind, parse_rule
from prefork.edge.setup import CONFIGURED, KEYS, EdgeSettings, Place, check, configure
from prefork.workers.layers import Layer, Resolved, attributes_layer, resolve

if TYPE_CHECKING:
    from prefork.host.addresses import Address

_RULES = ("proxy_from", "allow", "deny")


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
    found = []
    for address, place in zip(addresses, places, strict=True):
        fitting = _fitting(settings, place, places, str(address))
        check(fitting, place)
        found.append(fitting)
    return found


def configure_all(servers: Sequence[Any], layers: list[Layer]) -> None:
    """Give settings to the servers that have not got them yet: those that a factory has made."""
    for server in servers:
        if CONFIGURED not in vars(server):
            configure(server, edge_settings(resolve([attributes_layer(server), *layers])))


def place_of(address: Address) -> Place:
    """Return what the edge has to know of an address."""
    is_datagram = address.scheme in ("udp", "unixgram")
    if address.scheme in ("unix", "unixgram"):
        return Place(("Unix sockets",), is_datagram)
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


def _fitting(
    settings: EdgeSettings, place: Place, places: Sequence[Place], address: str
) -> EdgeSettings:
    """Return the settings without the rules that only other addresses are concerned with."""
    elsewhere = {kind for other in places for kind in other.kinds}
    values = dict(settings.values)
    for key in _RULES:
        given = values[key]
        if not given or (key != "proxy_from" and values["proxy_from"]):
            continue
        values[key] = tuple(
            text
            for text in given
            if (kind := _kind_of(text)) in place.kinds or kind not in elsewhere
        )
        if key == "allow" and not values[key]:
            reason = (
                f"none of its rules concerns a client of {address}, which would refuse everybody"
            )
            raise settings.error(key, reason)
    return msgspec.structs.replace(settings, values=values)


def _kind_of(text: str) -> Kind | None:
    try:
        return parse_rule(text).kind
    except ValueError:
        return None  # check() says what is wrong with it
