"""What an application may know of an encrypted connection, under the names of Apache's mod_ssl (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefork.edge.certificates import subject_of
from prefork.edge.client import TLSFacts


def tls_variables(tls: TLSFacts) -> dict[str, str]:
    """Return the variables of a connection.

    SSL_CLIENT_VERIFY is SUCCESS for a client that has shown a certificate, because a connection with one that is not
    trusted does not come this far, and NONE for any other client.
    """
    found = {
        "SSL_PROTOCOL": tls.version,
        "SSL_CIPHER": tls.cipher,
        "SSL_SESSION_RESUMED": "Resumed" if tls.resumed else "Initial",
        "SSL_CLIENT_VERIFY": "NONE" if tls.certificate is None else "SUCCESS",
    }
    if tls.server_name is not None:
        found["SSL_TLS_SNI"] = tls.server_name
    if tls.certificate is not None:
        found |= _of_certificate(tls.certificate)
    return found


def _of_certificate(certificate: Mapping[str, Any]) -> dict[str, str]:
    """Return the variables of a client's certificate, as ``SSLSocket.getpeercert()`` decodes it.

    The names are written as RFC 4514 says, such as ``CN=alice,O=Example``.
    """
    values = {
        "SSL_CLIENT_S_DN": subject_of(certificate.get("subject", ())),
        "SSL_CLIENT_I_DN": subject_of(certificate.get("issuer", ())),
        "SSL_CLIENT_S_DN_CN": _common_name(certificate.get("subject", ())),
        "SSL_CLIENT_M_SERIAL": certificate.get("serialNumber"),
        "SSL_CLIENT_V_START": certificate.get("notBefore"),
        "SSL_CLIENT_V_END": certificate.get("notAfter"),
    }
    return {name: native(value) for name, value in values.items() if value}


def native(text: str) -> str:
    """Return a text as PEP 3333 wants it: its bytes in UTF-8, each as one character."""
    return text.encode("utf-8", "surrogateescape").decode("latin-1")


def _common_name(subject: Any) -> str | None:
    names = (value for part in subject for kind, value in part if kind == "commonName")
    return next(names, None)
