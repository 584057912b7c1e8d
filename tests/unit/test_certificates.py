"""Certificates as files: names, dates, the choice by name, and the names of clients."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from prefork.edge.certificates import (
    Certificate,
    by_name,
    identity_in,
    names_in,
    read_certificate,
    why_unfit,
)
from tests.support.certificates import Authority

if TYPE_CHECKING:
    from pathlib import Path


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


def test_common_name_counts_without_alternatives() -> None:
    """The subject's common name is a name of the host only where there are no alternative names."""
    subject = ((("organizationName", "X"),), (("commonName", "Old.example"),))

    assert names_in({"subject": subject}) == ("old.example",)
    assert names_in({"subject": subject, "subjectAltName": (("DNS", "new.example"),)}) == (
        "new.example",
    )
    assert names_in({"subject": (), "subjectAltName": (("IP Address", "::1"),)}) == ()


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
