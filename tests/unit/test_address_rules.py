"""Address rules: what they match, what wins, and which of them are refused."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.edge.access import (
    BEHIND_A_PROXY,
    Credentials,
    Rules,
    matcher,
    parse_rule,
    why_useless,
)


def rules(allow: str = "", deny: str = "") -> Rules:
    """Return the rules of two texts."""
    return Rules(tuple(map(parse_rule, allow.split())), tuple(map(parse_rule, deny.split())))


def permits(found: Rules, address: Any, who: Credentials | None = None) -> bool:
    """Ask for one client."""
    return found.permits((address, 1) if address else "", lambda: who)


@pytest.mark.parametrize(
    ("allow", "deny", "address", "wanted"),
    [
        ("", "10.0.0.0/8", "10.1.2.3", False),
        ("", "10.0.0.0/8", "11.1.2.3", True),
        ("10.0.0.0/8", "", "10.1.2.3", True),
        ("10.0.0.0/8", "", "11.1.2.3", False),
        ("10.0.0.0/8", "10.1.0.0/16", "10.1.2.3", False),
        ("10.0.0.0/8", "10.1.0.0/16", "10.2.2.3", True),
        ("192.0.2.7", "", "192.0.2.7", True),
        ("192.0.2.7", "", "192.0.2.8", False),
        ("2001:db8::/32", "", "2001:db8::1", True),
        ("2001:db8::/32", "", "2001:db9::1", False),
        ("fe80::/10", "", "fe80::1%eth0", True),
        # one client, one form
        ("", "10.0.0.0/8", "::ffff:10.1.2.3", False),
        ("", "10.0.0.0/8", "::FFFF:0a01:0203", False),
        ("", "::ffff:10.0.0.0/104", "10.1.2.3", False),
        ("::/0", "", "::ffff:10.1.2.3", False),
        ("0.0.0.0/0", "", "::ffff:10.1.2.3", True),
        # no address at all
        ("0.0.0.0/0 ::/0", "", "somewhere", False),
        ("", "0.0.0.0/0", "somewhere", True),
        ("0.0.0.0/0", "", "010.1.2.3", False),
        ("unix", "", "10.1.2.3", False),
    ],
)
def test_networks(allow: str, deny: str, address: str, wanted: bool) -> None:
    """Deny wins; with allow everybody else is refused; an address has one form only."""
    assert permits(rules(allow, deny), address) is wanted


@pytest.mark.parametrize(
    ("allow", "deny", "wanted"),
    [
        ("unix", "", True),
        ("unix:uid=1000", "", True),
        ("unix:uid=1001", "", False),
        ("unix:gid=100", "", True),
        ("unix:gid=1000", "", False),
        ("unix", "unix:uid=1000", False),
        ("0.0.0.0/0", "", False),
    ],
)
def test_accounts(allow: str, deny: str, wanted: bool) -> None:
    """Rules about Unix sockets go by what the kernel says of the client."""
    found = rules(allow, deny)

    assert permits(found, "", Credentials(5, 1000, 100)) is wanted


def test_unknown_account() -> None:
    """A client of a Unix socket whose account is not known has none of the accounts."""
    assert not permits(rules("unix:uid=0"), "")
    assert permits(rules("unix"), "")


def test_kernel_is_asked_for_unix_sockets_only() -> None:
    """For an address of the internet nobody's credentials are looked up."""

    def ask() -> Credentials | None:
        raise AssertionError

    assert rules("10.0.0.0/8").permits(("10.0.0.1", 1), ask)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("10.0.0.1/8", "write the network"),
        ("10.0.0.0/33", "is no network"),
        ("10.0.0", "is no network"),
        ("localhost", "is no network"),
        ("[::1]", "is no network"),
        ("fe80::1%eth0", "write the address alone"),
        ("unix:pid=1", "unix:uid=1000"),
        ("unix:uid=root", "unix:uid=1000"),
        ("unix:uid=-1", "unix:uid=1000"),
        ("unix:uid=4294967295", "no uid"),
        ("", "is no network"),
    ],
)
def test_what_is_no_rule(text: str, words: str) -> None:
    """A text that is no rule is refused with a remedy."""
    with pytest.raises(ValueError, match=words):
        parse_rule(text)


@pytest.mark.parametrize(
    ("text", "stronger", "kinds", "words"),
    [
        ("10.0.0.0/8", "", ("Unix sockets",), "come from Unix sockets"),
        ("unix:uid=0", "", ("IPv4", "IPv6"), "come from IPv4 and IPv6"),
        ("unix:gid=0", "", BEHIND_A_PROXY, "is not known"),
        ("unix:uid=0", "", ("Unix sockets",), "behind a datagram"),
        ("fd00::/8", "", ("IPv4",), "come from IPv4"),
        ("10.0.0.0/8", "10.0.0.0/8", ("IPv4",), "wins over"),
        ("10.1.0.0/16", "10.0.0.0/8", ("IPv4",), "wins over"),
        ("unix:uid=5", "unix", ("Unix sockets", "accounts"), "wins over"),
        ("10.0.0.0/8", "10.1.0.0/16", ("IPv4",), ""),
        ("unix:uid=5", "unix:gid=5", ("Unix sockets", "accounts"), ""),
        ("unix", "unix:uid=5", ("Unix sockets",), ""),
        ("::ffff:10.0.0.0/104", "", ("IPv4",), ""),
    ],
)
def test_useless_rules(text: str, stronger: str, kinds: Any, words: str) -> None:
    """A rule that can never match is found: the wrong kind of clients, or covered by deny."""
    reason = why_useless(parse_rule(text), rules(deny=stronger).deny, kinds)

    assert words in reason
    assert bool(reason) == bool(words)


@given(
    st.ip_addresses(),
    st.ip_addresses().flatmap(
        lambda one: st.tuples(st.just(one), st.integers(0, one.max_prefixlen))
    ),
)
def test_as_ipaddress_says(client: Any, network: Any) -> None:
    """Membership is what the module ipaddress says, for each form of its own family."""
    wanted = ip_network(network, strict=False)
    found = rules(str(wanted))
    mapped = getattr(client, "ipv4_mapped", None)
    inner = ip_address(mapped) if mapped is not None else client
    if getattr(wanted.network_address, "ipv4_mapped", None) is not None and wanted.prefixlen >= 96:
        return

    assert permits(found, str(client)) == (inner in wanted)


def test_proxies_are_matched_alike() -> None:
    """The peers that have to send a header are found by the same rules."""
    is_proxy = matcher([parse_rule("10.0.0.0/8"), parse_rule("unix")])

    assert is_proxy(("10.0.0.1", 5))
    assert is_proxy(("::ffff:10.0.0.1", 5, 0, 0))
    assert is_proxy("")
    assert is_proxy(None)
    assert not is_proxy(("11.0.0.1", 5))
