"""For whom a request is: what proxies say in a head, whom of them an application believes, and what TLS has found out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from prefork.edge.client import TLSFacts, client_address
from prefork.workers.errors import SettingsError
from prefork.wsgi import WSGIServer, handler_for
from prefork.wsgi.environ import base_environ, environ_of
from prefork.wsgi.head import RefusedRequest, parse_head
from prefork.wsgi.limits import limits_of
from tests.support.http_cases import HEAD
from tests.support.http_exchange import answers, exchange

if TYPE_CHECKING:
    from collections.abc import Callable

NETS = ["10.0.0.0/8", "fd00::/8", "unix"]


class Server:
    """A server that believes some proxies."""

    forwarded_from: Any = NETS
    forwarded_fields = "x-forwarded"


class OfForwarded(Server):
    """A server whose proxies send Forwarded."""

    forwarded_fields = "forwarded"


def found_in(fields: str, peer: Any = ("10.0.0.1", 1), server: Any = Server) -> dict[str, Any]:
    """Return the environment of a request with these fields, a line each."""
    lines = "".join(f"{line}\r\n" for line in fields.split("\n") if line)
    head = parse_head(HEAD + lines.encode("latin-1") + b"\r\n", most_fields=100)
    trust = limits_of(server(), None).trust
    forwarded = trust and trust(head.fields, peer)
    return environ_of(head, base_environ("a", "1", None, None), peer, forwarded)


XFF, XFP, FWD = "X-Forwarded-For: ", "X-Forwarded-Proto: ", "Forwarded: "


@pytest.mark.parametrize(
    ("fields", "client", "scheme"),
    [
        ("", "10.0.0.1", "http"),
        (XFF + "192.0.2.7", "192.0.2.7", "http"),
        (XFF + "192.0.2.7:4711\n" + XFP + "HTTPS", "192.0.2.7", "https"),
        (XFF + "[2001:db8::7]:4711", "2001:db8::7", "http"),
        (XFF + "2001:DB8::7", "2001:db8::7", "http"),
        (XFF + "::ffff:192.0.2.7", "192.0.2.7", "http"),
        (XFF + "192.0.2.7, ::ffff:10.0.0.2", "192.0.2.7", "http"),
        # what the client has said stands before what the proxies have said
        (XFF + "127.0.0.1, 192.0.2.7, 10.0.0.2", "192.0.2.7", "http"),
        (XFF + "127.0.0.1\n" + XFF + "192.0.2.7,fd00::2", "192.0.2.7", "http"),
        (XFF + "10.0.0.9, 10.0.0.2", "10.0.0.9", "http"),
        (XFF + "evil, 10.0.0.2", "10.0.0.2", "http"),
        (XFF + "unknown", "10.0.0.1", "http"),
        (XFF + ",", "10.0.0.1", "http"),
        # the scheme
        (XFP + "https", "10.0.0.1", "https"),
        (XFP + "https\n" + XFP + "http", "10.0.0.1", "http"),
        (XFP + "https, http", "10.0.0.1", "http"),
        (XFP + "ftp", "10.0.0.1", "http"),
        # the fields of the other kind are the client's
        (FWD + "for=192.0.2.66;proto=https", "10.0.0.1", "http"),
        ("X_Forwarded_For: 192.0.2.66", "10.0.0.1", "http"),
    ],
)
def test_client_of_a_proxy(fields: str, client: str, scheme: str) -> None:
    """X-Forwarded-For and -Proto of a named proxy say for whom a request is, and only what the proxies have added counts."""
    environ = found_in(fields)
    assert (environ["REMOTE_ADDR"], environ["wsgi.url_scheme"]) == (client, scheme)
    assert ("REMOTE_PORT" in environ) == (client == "10.0.0.1")
    assert ("HTTPS" in environ) == (scheme == "https")


@pytest.mark.parametrize(
    ("fields", "client", "scheme"),
    [
        (FWD + "for=192.0.2.7;proto=https", "192.0.2.7", "https"),
        (FWD + 'For="[2001:db8::7]:4711" ; Proto=HTTPS', "2001:db8::7", "https"),
        (
            FWD + "for=127.0.0.1;proto=https, for=192.0.2.7;proto=http, for=10.0.0.2;proto=https",
            *("192.0.2.7", "http"),
        ),
        (FWD + 'for=192.0.2.66;by="a\\",b", for=192.0.2.7', "192.0.2.7", "http"),
        (FWD + "for=192.0.2.66\n" + FWD + "for=192.0.2.7", "192.0.2.7", "http"),
        # pairs and elements may be empty
        (FWD + "for=192.0.2.66, for=192.0.2.7;", "192.0.2.7", "http"),
        (FWD + "for=192.0.2.66, for=192.0.2.7; ;\t;", "192.0.2.7", "http"),
        (FWD + ";;for=192.0.2.7;;proto=https", "192.0.2.7", "https"),
        (FWD + ",for=192.0.2.7,, for=10.0.0.2 , ,", "192.0.2.7", "http"),
        (FWD, "10.0.0.1", "http"),
        (FWD + ";,;", "10.0.0.1", "http"),
        (FWD + "for=unknown", "10.0.0.1", "http"),
        (FWD + "for=_hidden;proto=https", "10.0.0.1", "https"),
        (XFF + "192.0.2.66\n" + XFP + "https", "10.0.0.1", "http"),
    ],
)
def test_forwarded(fields: str, client: str, scheme: str) -> None:
    """With forwarded_fields = "forwarded", the field of RFC 7239 says the same."""
    environ = found_in(fields, server=OfForwarded)
    assert (environ["REMOTE_ADDR"], environ["wsgi.url_scheme"]) == (client, scheme)


@pytest.mark.parametrize("peer", [("192.0.2.1", 1), ("::1", 1, 0, 0), ("", 1)])
def test_other_peers_are_not_believed(peer: Any) -> None:
    """A peer that is no named proxy says nothing of a client; without names nobody does."""
    spoof = XFF + "192.0.2.66\n" + XFP + "https"
    environ = found_in(spoof, peer)
    assert (environ["REMOTE_ADDR"], environ["wsgi.url_scheme"]) == (peer[0], "http")
    assert limits_of(SimpleNamespace(), None).trust is None
    assert found_in(spoof, "")["REMOTE_ADDR"] == "192.0.2.66"  # a Unix socket, which is named


_WORDS = [
    "for=",
    "proto=",
    '"',
    "\\",
    ";",
    ",",
    "=",
    " ",
    "\t",
    "[",
    "]",
    ":",
    "\xe9",
    "evil",
    "10.0.0.2",
    "192.0.2.66",
]


@given(
    st.lists(st.sampled_from(_WORDS), max_size=12).map("".join),
    st.sampled_from(["", ";", " ; ", ";;"]),
)
@example("for=192.0.2.66", ";")
@pytest.mark.parametrize("server", [Server, OfForwarded])
def test_client_cannot_say_who_it_is(server: Any, said: str, end: str) -> None:
    """Whatever stands in the field before the entry of the proxy, that entry is the client, or the request is refused."""
    name, entry = (XFF, "192.0.2.7") if server is Server else (FWD, f'for="192.0.2.7"{end}')
    try:
        environ = found_in(f"{name}{said}, {entry}", server=server)
    except RefusedRequest:
        found = "refused"
    else:
        found = environ["REMOTE_ADDR"]
    assert found in ({"192.0.2.7"} if server is Server else {"192.0.2.7", "refused"})


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"forwarded_from": "10.0.0.0/8, everybody"}, "everybody is no network"),
        ({"forwarded_from": ["unix:uid=0"]}, "write unix"),
        ({"forwarded_fields": "via"}, "x-forwarded or forwarded"),
    ],
)
def test_wrong_proxies_are_refused(attributes: dict[str, Any], words: str) -> None:
    """A server whose proxies cannot be understood is refused before it binds anything."""
    cls = type("Shop", (WSGIServer,), attributes)
    with pytest.raises(SettingsError, match=words) as caught:
        cls(("no such host", -1), print)
    assert "attribute Shop" in str(caught.value)


def test_application_sees_the_client_of_the_proxy() -> None:
    """A handler gives its application the client whom the proxy has named."""
    seen: list[str] = []

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        seen.append(environ["REMOTE_ADDR"])
        start_response("200 OK", [])
        return []

    sent = HEAD + b"X-Forwarded-For: 198.51.100.9\r\n\r\n"
    for proxies in (None, "192.0.2.0/24"):
        assert answers(exchange(application, sent, forwarded_from=proxies)) == [(200, b"")]
    assert seen == ["192.0.2.7", "198.51.100.9"]
    assert handler_for(application).reports_answers


def test_variables_of_tls() -> None:
    """An application finds what TLS has settled, and who its client is, under the names of mod_ssl."""
    certificate = {
        "subject": ((("organizationName", "Łódź"),), (("commonName", "alice"),)),
        "issuer": ((("commonName", "ca"),),),
        "serialNumber": "0A",
        "notBefore": "Jan  1 00:00:00 2026 GMT",
        "notAfter": "Jan  1 00:00:00 2027 GMT",
    }
    facts = TLSFacts("TLSv1.3", "AES", server_name="shop", resumed=True, certificate=certificate)
    peer = client_address(("192.0.2.1", 1), ("192.0.2.1", 1), identity="Łódź", tls=facts)
    environ = found_in("", peer)
    expected = {
        "HTTPS": "on",
        "wsgi.url_scheme": "https",
        "SSL_PROTOCOL": "TLSv1.3",
        "SSL_CIPHER": "AES",
        "SSL_TLS_SNI": "shop",
        "SSL_SESSION_RESUMED": "Resumed",
        "SSL_CLIENT_VERIFY": "SUCCESS",
        "SSL_CLIENT_S_DN_CN": "alice",
        "SSL_CLIENT_I_DN": "CN=ca",
        "SSL_CLIENT_M_SERIAL": "0A",
        "SSL_CLIENT_S_DN": "CN=alice,O=Łódź".encode().decode("latin-1"),
        "SSL_CLIENT_V_END": "Jan  1 00:00:00 2027 GMT",
        "REMOTE_USER": "Łódź".encode().decode("latin-1"),
    }
    assert {key: environ.get(key) for key in expected} == expected
    plain = client_address(("192.0.2.1", 1), ("192.0.2.1", 1), tls=TLSFacts("TLSv1.3", "AES"))
    found = found_in("", plain)
    assert (found["SSL_CLIENT_VERIFY"], "SSL_CLIENT_S_DN" in found) == ("NONE", False)
