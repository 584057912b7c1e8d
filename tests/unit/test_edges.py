"""The edge of the servers that the command line makes: one set of flags, fitted to each address."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import prefork
from prefork.cli.edges import edge_of_instance, edges_for, refuse_unusable_anywhere
from prefork.edge.edge import edge_of
from prefork.edge.setup import configure, prepare
from prefork.host.addresses import Address
from prefork.workers.layers import Layer, attributes_layer, resolve

if TYPE_CHECKING:
    from pathlib import Path

RULES = ("proxy_from", "allow", "deny")


def resolved(**values: object) -> Any:
    """Return settings of flags."""
    return resolve([Layer({"workers": 1, **values}, lambda key: f"flag --{key}", text=True)])


def edges(addresses: str, **values: object) -> list[dict[str, Any]]:
    """Return the rules for each address."""
    found = edges_for(resolved(**values), [Address.parse(text) for text in addresses.split()])
    return [
        {key: value for key, value in one.values.items() if value and key in RULES} for one in found
    ]


def test_rules_are_for_the_addresses_that_they_fit() -> None:
    """Networks go to sockets of the internet and accounts to Unix sockets."""
    assert edges(":1 unix:/x [::]:1", allow="10.0.0.0/8 unix:uid=0", deny="10.1.0.0/16") == [
        {"allow": ("10.0.0.0/8",), "deny": ("10.1.0.0/16",)},
        {"allow": ("unix:uid=0",)},
        {"allow": ("10.0.0.0/8",), "deny": ("10.1.0.0/16",)},
    ]


def test_behind_a_proxy_a_client_can_come_from_anywhere() -> None:
    """With ``proxy_from`` rules about all addresses are kept, and those about accounts are for other sockets."""
    assert edges("unix:/x", proxy_from="unix", allow="10.0.0.0/8") == [
        {"proxy_from": ("unix",), "allow": ("10.0.0.0/8",)}
    ]
    assert edges("unix:/x :1", proxy_from="127.0.0.1", allow="10.0.0.0/8 unix:uid=0") == [
        {"allow": ("unix:uid=0",)},
        {"proxy_from": ("127.0.0.1",), "allow": ("10.0.0.0/8",)},
    ]


@pytest.mark.parametrize(
    ("addresses", "values", "words"),
    [
        (":1", {"allow": "unix"}, "flag --allow.*never matches"),
        (":1", {"deny": "fd00::/8"}, "flag --deny.*come from IPv4"),
        (":1 unix:/x", {"allow": "10.0.0.0/8"}, "no.*client of unix:/x"),
        (":1", {"proxy_from": "10.0.0.1/8"}, "flag --proxy_from.*write the network"),
        (":1 unix:/x", {"proxy_from": "10.0.0.1 unix", "deny": "unix:uid=0"}, "is not known"),
        ("unixgram:/x", {"deny": "unix:uid=0"}, "flag --deny.*is not known"),
        (":1", {"allow": "10.0.0.0/8", "deny": "10.0.0.0/8"}, "wins over"),
    ],
)
def test_useless_rules(addresses: str, values: dict[str, str], words: str) -> None:
    """A rule that cannot match is refused with its origin, before anything is bound."""
    with pytest.raises(prefork.SettingsError, match=words):
        edges(addresses, **values)


def test_configured_server_uses_what_it_was_given() -> None:
    """A server of the command line has the settings of the flags and not those of its attributes."""
    (settings,) = edges_for(resolved(deny="10.0.0.0/8"), [Address.parse("127.0.0.1:0")])
    with prefork.PreForkingTCPServer(("127.0.0.1", 0), prefork.StreamRequestHandler) as server:
        assert edge_of(server) is None
        configure(server, settings)
        prepare(server)
        assert edge_of(server) is not None


def test_instance_is_checked_for_its_own_socket(tmp_path: Path) -> None:
    """What a server object asks for is checked for the address that it has, and not for another one."""

    class Local(prefork.PreForkingUnixStreamServer):
        allow = "unix:uid=0"

    with Local(str(tmp_path / "socket"), prefork.StreamRequestHandler) as server:
        by_attributes = [attributes_layer(server)]
        assert edge_of_instance(resolve(by_attributes), server).values["allow"] == ("unix:uid=0",)
        flags = Layer({"deny": "10.0.0.0/8"}, lambda key: f"flag --{key}", text=True)
        with pytest.raises(prefork.SettingsError, match=r"flag --deny.*come from Unix sockets"):
            edge_of_instance(resolve([*by_attributes, flags]), server)


def test_factory_is_checked_as_far_as_possible() -> None:
    """Flags that no server could use are refused before a factory is called, and all others are left to its servers."""
    for value in ("unix:uid=0", "10.0.0.0/8", "fd00::/8"):
        refuse_unusable_anywhere(resolved(allow=value))
    refuse_unusable_anywhere(resolved(tls_client_ca="/nowhere.pem"))
    for values in ({"allow": "10.0.0.1/8"}, {"tls_certificate": "/nowhere.pem"}):
        with pytest.raises(prefork.SettingsError, match=r"flag --"):
            refuse_unusable_anywhere(resolved(**values))


def test_settings_of_the_pool_count_where_a_server_has_none() -> None:
    """``serve(server, settings=…)`` protects the server, unless its own attributes say otherwise."""
    given = prefork.Settings(workers=1, deny="10.0.0.0/8")
    with prefork.PreForkingTCPServer(("127.0.0.1", 0), prefork.StreamRequestHandler) as server:
        prepare(server, given=given)
        edge = edge_of(server)
        assert edge is not None
        assert edge.made_from[0]["deny"] == ("10.0.0.0/8",)
        server.deny = "192.0.2.0/24"
        prepare(server, given=given)
        edge = edge_of(server)
        assert edge is not None
        assert edge.made_from[0]["deny"] == ("192.0.2.0/24",)
