"""Address rules: which clients may come in (pure).

A rule is a network, such as ``192.0.2.0/24`` or ``2001:db8::/32``, a single address, ``unix`` for all
clients of Unix sockets, or ``unix:uid=1000`` and ``unix:gid=1000`` for those of one user or group.

``deny`` wins over ``allow``. With ``allow``, a client that no rule of it matches is refused.

**One client, one form.** An IPv4 client of an IPv6 socket has an address such as ``::ffff:192.0.2.7``. The
rules compare numbers, and such an address counts as the IPv4 address that it stands for, in rules as
well as for clients. Otherwise a client that is denied by one form would come in by the other. So
``::/0`` is every client of IPv6, and no client of IPv4.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Any, Final, Literal

import msgspec

Kind = Literal["IPv4", "IPv6", "Unix sockets", "accounts"]
"""What a rule goes by: where a client comes from, or the account that it has on this machine.

The kernel knows the account behind a connection that was made to a Unix socket. The account behind a
datagram is not known, nor is that of a client for whom a proxy speaks.
"""

BEHIND_A_PROXY: Final[tuple[Kind, ...]] = ("IPv4", "IPv6", "Unix sockets")
"""What rules can go by where proxies speak for the clients, which can come from anywhere."""


class Rule(msgspec.Struct, frozen=True):
    """One rule. text: as it was given.

    bits: 32 or 128, of a network's addresses; 0 for a rule about Unix sockets. prefix: the number of
    bits that count. network: these bits as a number. uid, gid: the account; None for any.
    """

    text: str
    bits: int = 0
    prefix: int = 0
    network: int = 0
    uid: int | None = None
    gid: int | None = None

    @property
    def kind(self) -> Kind:
        """What the rule goes by."""
        if self.bits == 32:
            return "IPv4"
        # Addresses of IPv4 within IPv6 have become rules about IPv4; but for the networks around them.
        if self.bits:
            return "IPv6"
        return "Unix sockets" if self.uid is None and self.gid is None else "accounts"

    def covers(self, other: Rule) -> bool:
        """Return whether every client that the other rule matches is matched by this one."""
        if self.bits != other.bits:
            return False
        if not self.bits:
            is_all = self.uid is None and self.gid is None
            return is_all or (self.uid, self.gid) == (other.uid, other.gid)
        shift = self.bits - self.prefix
        return self.prefix <= other.prefix and self.network >> shift == other.network >> shift


class Credentials(msgspec.Struct, frozen=True):
    """Who is at the other end of a Unix socket, as the kernel says."""

    pid: int
    uid: int
    gid: int


Ask = Callable[[], Credentials | None]
"""Returns the credentials of a client of a Unix socket; None where the kernel has none."""


def parse_rule(text: str) -> Rule:
    """Return the rule of a text. ValueError: why there is none."""
    if text == "unix":
        return Rule(text)
    if text.startswith("unix:"):
        return _unix_rule(text)
    if "%" in text:
        raise ValueError(
            f"{text} names an interface, and a rule holds for all of them; write the address alone"
        )
    try:
        network = ip_network(text)
    except ValueError as error:
        raise ValueError(_why_no_network(text, error)) from None
    return _network_rule(text, network)


def _unix_rule(text: str) -> Rule:
    name, _, number = text.removeprefix("unix:").partition("=")
    if name not in ("uid", "gid") or not (number.isascii() and number.isdigit()):
        raise ValueError("a rule for Unix sockets is unix, unix:uid=1000 or unix:gid=1000")
    account = int(number)
    if account > 2**32 - 2:
        raise ValueError(f"{number} is no {name} of this system")
    return Rule(text, uid=account) if name == "uid" else Rule(text, gid=account)


def _network_rule(text: str, network: IPv4Network | IPv6Network) -> Rule:
    address, prefix = int(network.network_address), network.prefixlen
    if network.version == 4:
        return Rule(text, 32, prefix, address)
    if prefix >= 96 and address >> 32 == 0xFFFF:
        return Rule(text, 32, prefix - 96, address & 0xFFFFFFFF)
    return Rule(text, 128, prefix, address)


def _why_no_network(text: str, error: ValueError) -> str:
    if "host bits set" in str(error):
        return f"{text} is an address within a network; write the network, or the address alone"
    return f"{text} is no network, address, unix, unix:uid=N or unix:gid=N"


class Rules(msgspec.Struct, frozen=True):
    """The rules of one server."""

    allow: tuple[Rule, ...] = ()
    deny: tuple[Rule, ...] = ()

    def permits(self, address: Any, ask: Ask) -> bool:
        """Return whether a client may come in.

        address: as the socket module has it. ask: returns the client's credentials, and is called
        only for a client of a Unix socket.
        """
        client = client_of(address, ask)
        if _any_matches(self.deny, client):
            return False
        return not self.allow or _any_matches(self.allow, client)


class Client(msgspec.Struct, frozen=True):
    """A client as rules see it: a number of 32 or 128 bits, or an account; bits is 0 without an address."""

    bits: int
    number: int = 0
    credentials: Credentials | None = None
    is_unix: bool = False


def verdicts(rules: Rules) -> Callable[[Any, Ask], bool]:
    """Return what does as ``permits()`` of these rules does, and remembers the latest hosts.

    Most clients come again, and to look at an address takes some microseconds.
    """

    @functools.lru_cache(maxsize=1024)
    def permits_host(host: str) -> bool:
        return rules.permits((host,), _unknown)

    def permits(address: Any, ask: Ask) -> bool:
        if isinstance(address, tuple) and address:
            return permits_host(str(address[0]))
        return rules.permits(address, ask)

    return permits


def client_of(address: Any, ask: Ask) -> Client:
    """Return a client as rules see it. An address that is none matches no rule."""
    if isinstance(address, tuple):
        return _internet_client(address)
    return Client(0, credentials=ask(), is_unix=address is None or isinstance(address, str | bytes))


def _internet_client(address: tuple[Any, ...]) -> Client:
    return _client_at(str(address[0])) if address else Client(0)


def _client_at(host: str) -> Client:
    try:
        if ":" not in host:
            return Client(32, int(IPv4Address(host)))
        number = int(IPv6Address(host.partition("%")[0]))
    except ValueError:
        return Client(0)
    if number >> 32 == 0xFFFF:
        return Client(32, number & 0xFFFFFFFF)
    return Client(128, number)


def _any_matches(rules: tuple[Rule, ...], client: Client) -> bool:
    return any(_matches(rule, client) for rule in rules)


def _matches(rule: Rule, client: Client) -> bool:
    if rule.bits:
        shift = rule.bits - rule.prefix
        return rule.bits == client.bits and client.number >> shift == rule.network >> shift
    if not client.is_unix:
        return False
    if rule.uid is None and rule.gid is None:
        return True
    who = client.credentials
    return who is not None and (
        rule.uid == who.uid if rule.uid is not None else rule.gid == who.gid
    )


def matcher(rules: Iterable[Rule]) -> Callable[[Any], bool]:
    """Return a function that says whether a peer is one of the proxies that the rules name."""
    permits = verdicts(Rules(deny=tuple(rules)))

    def is_proxy(address: Any) -> bool:
        return not permits(address, _unknown)

    return is_proxy


def _unknown() -> None:
    """Say that the credentials of a client are not known."""


def why_useless(rule: Rule, others: Sequence[Rule], kinds: Sequence[Kind]) -> str:
    """Return why a rule can never decide anything, "" for one that can.

    others: the rules that are asked first. kinds: what rules of the server can go by.
    """
    if rule.kind not in kinds:
        return f"the rule {rule.text} never matches: {_why_never(rule, kinds)}"
    stronger = next((one for one in others if one.covers(rule)), None)
    if stronger is not None:
        return f"the rule {rule.text} never matches: {stronger.text} in deny wins over it"
    return ""


def _why_never(rule: Rule, kinds: Sequence[Kind]) -> str:
    if rule.kind == "accounts" and "Unix sockets" in kinds:
        return "the account behind a datagram, or of a client of a proxy, is not known"
    origins = [kind for kind in kinds if kind != "accounts"]
    return f"clients of this server come from {' and '.join(origins)}"
