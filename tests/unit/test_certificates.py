"""Certificates as files: names, dates, the choice by name, and the names of clients."""

from __future__ import annotations

import contextlib
import ssl
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from prefork.edge.certificates import (
    Certificate,
    by_name,
    grouped,
    identity_in,
    read_certificate,
    why_unfit,
)
from prefork.edge.x509 import parse_certificates
from tests.support.certificates import Authority

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Make an authority."""
    return trustme.CA()


def test_names_and_dates_of_a_file(tmp_path: Path) -> None:
    """The first certificate of a file tells its names in lower case, and from when until when it is valid."""
    ends = datetime(2040, 1, 2, tzinfo=UTC)
    path = Authority(tmp_path).server("Example.org", "*.example.org", "192.0.2.7", ends=ends)

    found = read_certificate(path)

    assert found.names == ("example.org", "*.example.org")
    assert found.ends == ends.timestamp()
    assert found.begins < ends.timestamp() - 86_400


@pytest.mark.parametrize("content", [b"", b"no certificate", b"-----BEGIN CERTIFICATE-----\nxx\n"])
def test_file_without_a_certificate(tmp_path: Path, content: bytes) -> None:
    """What is no certificate is refused in words."""
    path = tmp_path / "none.pem"
    path.write_bytes(content)

    with pytest.raises(ValueError, match="has no certificate in PEM form"):
        read_certificate(str(path))
    with pytest.raises(FileNotFoundError):
        read_certificate(str(tmp_path / "missing.pem"))


@pytest.mark.parametrize(
    ("now", "words"),
    [(99, "not valid before 1970-01-01 00:01"), (100, ""), (199, ""), (200, "has expired on")],
)
def test_dates(now: float, words: str) -> None:
    """A certificate is valid from its first second to the one before its end."""
    reason = why_unfit(Certificate("a.pem", (), 100, 200), now)

    assert words in reason
    assert bool(reason) == bool(words)


@pytest.mark.parametrize(
    ("names", "wanted"),
    [(["new.example"], ("new.example",)), (["192.0.2.7"], ("old.example",))],
)
def test_common_name_counts_without_alternatives(
    authority: trustme.CA, names: list[str], wanted: tuple[str, ...]
) -> None:
    """The subject's common name is a name of the host only where there are no alternative names."""
    issued = authority.issue_cert(*names, common_name="Old.example")
    (found, *_) = parse_certificates(issued.cert_chain_pems[0].bytes())
    assert found.names == wanted


@pytest.mark.parametrize("kind", [trustme.KeyType.ECDSA, trustme.KeyType.RSA])
def test_reads_what_openssl_reads(
    authority: trustme.CA, tmp_path: Path, kind: trustme.KeyType
) -> None:
    """Names and dates are those that OpenSSL finds, for both kinds of keys."""
    issued = authority.issue_cert("Example.org", "*.example.org", "a@b.org", key_type=kind)
    path = tmp_path / "one.pem"
    issued.private_key_and_cert_chain_pem.write_to_path(path)
    known = ssl._ssl._test_decode_cert(str(path))  # type: ignore[attr-defined]
    found = read_certificate(str(path))
    assert found.names == ("example.org", "*.example.org")
    assert found.begins == ssl.cert_time_to_seconds(known["notBefore"])
    assert found.ends == ssl.cert_time_to_seconds(known["notAfter"])
    # The numbers of the algorithms ecPublicKey and rsaEncryption.
    wanted = "2a8648ce3d0201" if kind is trustme.KeyType.ECDSA else "2a864886f70d010101"
    assert found.key_kind == wanted


@given(st.data())
def test_damaged_certificate(authority: trustme.CA, data: st.DataObject) -> None:
    """Whatever a byte of a certificate is changed to, it is read, or refused by a ValueError."""
    der = ssl.PEM_cert_to_DER_cert(authority.cert_pem.bytes().decode())
    place = data.draw(st.integers(0, len(der) - 1))
    changed = der[:place] + data.draw(st.binary(max_size=3)) + der[place + 1 :]
    with contextlib.suppress(ValueError):
        parse_certificates(ssl.DER_cert_to_PEM_cert(changed).encode())


def certificate(*names: str, kind: str = "curve") -> Certificate:
    """Return a certificate for these names."""
    return Certificate("/".join(names) or "none", names, 0, 1, kind)


def test_kinds_of_keys_share_a_context() -> None:
    """Certificates with the same names share a context where their keys differ in kind; others never do."""
    found = grouped(
        [
            certificate("a.org", "b.org"),
            certificate("a.org", "c.org", kind="rsa"),
            certificate("b.org", "a.org", kind="rsa"),
            certificate("b.org", "d.org", kind="rsa"),
        ]
    )
    assert found == [[0, 2], [1], [3]]


@pytest.mark.parametrize("names", [("b.org",), ("a.org", "b.org"), ()])
def test_certificate_that_no_client_would_get(names: tuple[str, ...]) -> None:
    """A certificate whose names are taken by others is refused."""
    with pytest.raises(ValueError, match="no client would get it; leave it out"):
        grouped([certificate("a.org", "b.org"), certificate(*names)])


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("example.org", 1),
        ("EXAMPLE.org.", 1),
        ("www.example.org", 2),
        ("a.b.example.org", None),
        ("exact.example.org", 3),
        ("example.com", None),
        ("", None),
        ("org", None),
        ("*.example.org", 2),
    ],
)
def test_choice_by_name(name: str, wanted: int | None) -> None:
    """An exact name wins, a star stands for one label, and the case does not count."""
    table = {"example.org": 1, "*.example.org": 2, "exact.example.org": 3}

    assert by_name(table, name) == wanted


@pytest.mark.parametrize(
    ("subject", "wanted"),
    [
        (((("organizationName", "Example"),), (("commonName", "alice"),)), "CN=alice,O=Example"),
        (((("commonName", "a,b+c=d"),),), r"CN=a\,b\+c\=d"),
        (((("commonName", "a"), ("userId", "7")),), "CN=a+UID=7"),
        (((("commonName", " #a "),),), "CN=\\ #a\\ "),
        (((("serialNumber", "5"),),), "serialNumber=5"),
    ],
)
def test_identity(subject: tuple[tuple[tuple[str, str], ...], ...], wanted: str) -> None:
    """The subject is one text, in which no value can look like another part."""
    assert identity_in({"subject": subject}) == wanted


def test_identity_without_a_subject() -> None:
    """A certificate without a subject has its first alternative name, or none."""
    assert identity_in({"subjectAltName": (("URI", "spiffe://a/b"),)}) == "URI:spiffe://a/b"
    assert identity_in({}) is None
