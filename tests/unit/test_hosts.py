"""Hosts as text: what is a name, what is an address, and how a port is written behind them."""

from __future__ import annotations

import pytest

from prefork.workers.hosts import (
    LONGEST_LABEL,
    LONGEST_NAME,
    is_host_name,
    is_ipv4,
    is_ipv6,
    is_portable_host,
    with_port,
)

LABEL = "a" * LONGEST_LABEL
LONG = ".".join([LABEL] * 3) + "." + "a" * (LONGEST_NAME - 3 * (LONGEST_LABEL + 1))

NAMES = ("web1", "web-1.example.", "_srv.example", "1a", "3com.example", LABEL, LONG, f"{LONG}.")
OTHER_LETTERS = ("bücher.example",)
IPV4 = ("10.0.0.1", "0.0.0.0")
IPV6 = ("::", "fd00::1", "::ffff:10.0.0.1")
NONE = (
    *("", ".", "a..b", ".a", "-a", "a b", "a:1", "a/b", "a\n", "*", "[::1]", "fe80::1%eth0"),
    *("1.2.3", "256.1.1.1", "1.2.3.4.", f"{LABEL}a", f"{LONG}a", "é" * LONGEST_LABEL),
)


@pytest.mark.parametrize(
    ("judge", "good"),
    [
        (is_host_name, {*NAMES, *OTHER_LETTERS}),
        (is_ipv4, {*IPV4}),
        (is_ipv6, {*IPV6}),
        (is_portable_host, {*NAMES, *IPV4, *IPV6}),
    ],
)
def test_kinds_of_hosts(judge: object, good: set[str]) -> None:
    """A text is a name, an IPv4 address, an IPv6 address or none of them; other letters and zones are not portable."""
    every = (*NAMES, *OTHER_LETTERS, *IPV4, *IPV6, *NONE)
    assert {text for text in every if judge(text)} == good  # type: ignore[operator]  # a function


def test_port_behind_a_host() -> None:
    """An IPv6 address stands in brackets before a port, and nothing else does."""
    assert [with_port(host, 80) for host in ("web1", "10.0.0.1", "fd00::1")] == [
        *("web1:80", "10.0.0.1:80", "[fd00::1]:80")
    ]
