"""``ClientAddress``: the plain address with more attributes, and the same to all code that knows nothing of it."""

from __future__ import annotations

import copy
import json
import os
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import prefork
from prefork.edge.client import ProxyFacts, TLSFacts, client_address, packed, unpacked
from prefork.workers.parking import (
    INSTANT,
    MOST_PAYLOAD,
    MOST_READ_AHEAD,
    MOST_STATE,
    Luggage,
    decode,
    encode,
)
from prefork.workers.worker.clients import client_facts, client_name

PLAIN = [
    *(("192.0.2.7", 4711), ("2001:db8::7", 4711, 0, 0)),
    *("/run/client", os.fsdecode(b"/run/c\xff\xc3\xa9"), "", b"\0abstract", b"\0\xff"),
]

ADDRESSES = pytest.mark.parametrize("plain", PLAIN, ids=repr)

ANY_TEXT = st.text(st.characters() | st.characters(categories=["Cs"]))

PROXY = ProxyFacts(2, tlvs=((1, b"h2"), (5, b"id")), destination=("192.0.2.1", 443))


def known(plain: Any) -> Any:
    """Return the address with everything that an edge can find out."""
    return client_address(
        plain, ("10.0.0.1", 99), identity="CN=alice", tls=TLSFacts("TLSv1.3", "AES"), proxy=PROXY
    )


@ADDRESSES
def test_is_the_plain_address(plain: Any) -> None:
    """It compares, hashes, unpacks, formats, slices and pickles as the plain address does."""
    address = known(plain)

    assert isinstance(address, prefork.ClientAddress)
    assert isinstance(address, type(plain))
    assert address == plain
    assert plain == address
    assert hash(address) == hash(plain)
    assert {plain: 1}[address] == 1
    assert [*address] == [*plain]
    assert (str(address), repr(address), f"{address}") == (str(plain), repr(plain), f"{plain}")
    assert address[:1] == plain[:1]
    for again in (pickle.loads(pickle.dumps(address)), copy.copy(address), copy.deepcopy(address)):
        assert again == plain
        assert (again.peer, again.identity, again.proxy) == (("10.0.0.1", 99), "CN=alice", PROXY)
    assert client_name(address) == client_name(plain)


def test_of_the_internet_in_formats() -> None:
    """The usual ways to write an address of the internet work."""
    address = known(PLAIN[0])
    host, port = address

    assert "%s:%s" % address == f"{host}:{port}" == "192.0.2.7:4711"  # noqa: UP031
    assert json.loads(json.dumps(address)) == ["192.0.2.7", 4711]


def test_without_an_address() -> None:
    """None, which a Unix datagram without a sender has, stays None; so does whatever else is no address."""
    other = object()

    assert client_address(None, None) is None
    assert client_address(other, other) is other


@ADDRESSES
def test_travels_through_the_lot(plain: Any) -> None:
    """Peer, identity and what the proxy said come back with a parked connection."""
    address, kept = packed(known(plain))
    luggage = decode(encode(Luggage(address, client=kept)))
    back = tuple(luggage.address) if isinstance(luggage.address, list) else luggage.address
    again = unpacked(back, luggage.client)

    assert again == plain
    assert type(again) is type(known(plain))
    assert (again.peer, again.identity, again.proxy) == (("10.0.0.1", 99), "CN=alice", PROXY)


@given(st.recursive(ANY_TEXT | st.binary() | st.none() | st.integers(0, 9), st.lists))
def test_any_text_travels_through_the_lot(value: Any) -> None:
    """What a proxy, a client or a program calls a client comes back as it was, and no text ends a connection."""
    luggage = Luggage(value, b"state", b"ahead", client=[value, "CN=alice", None])
    assert decode(encode(luggage)) == luggage


def test_longest_header_of_a_proxy_fits_into_a_message() -> None:
    """A connection is parked whatever its proxy has said: 16 KiB of the smallest extensions leave room for the rest."""
    name = b"\0" + b"x" * 107
    proxy = ProxyFacts(2, tlvs=((0xE0, b""),) * (16 * 1024 // 3), destination=name)
    address, kept = packed(client_address(name, name, identity="x" * 1000, proxy=proxy))
    luggage = Luggage(address, b"s" * MOST_STATE, b"r" * MOST_READ_AHEAD, client=kept)
    assert len(encode(luggage)) + INSTANT.size <= MOST_PAYLOAD


def test_plain_address_has_nothing_to_keep() -> None:
    """Without an edge a parked connection has its plain address and no more."""
    assert packed(("192.0.2.7", 1)) == (("192.0.2.7", 1), None)


def test_tlvs_are_found_by_type() -> None:
    """The value of an extension is found by its number; the first one counts."""
    assert PROXY.tlv(5) == b"id"
    assert PROXY.tlv(9) is None


def test_log_lines_name_client_peer_and_identity() -> None:
    """A line has the peer where it differs, and the identity where there is one."""
    plain = PLAIN[0]

    assert client_facts(plain) == {"client": "192.0.2.7:4711"}
    assert client_facts(client_address(plain, plain)) == {"client": "192.0.2.7:4711"}
    assert client_facts(known(plain)) == {
        "client": "192.0.2.7:4711",
        "peer": "10.0.0.1:99",
        "identity": "CN=alice",
    }
    assert client_facts("") == {"client": "-"}
    assert len(client_facts(client_address(plain, plain, identity="x" * 900))["identity"]) == 200
