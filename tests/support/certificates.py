"""Certificates for tests, made by trustme: an authority, servers and clients."""

from __future__ import annotations

import ssl
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtensionOID, NameOID, ObjectIdentifier

if TYPE_CHECKING:
    from datetime import datetime


class Authority:
    """One authority, whose files go to a folder."""

    def __init__(self, folder: Path, ca: trustme.CA | None = None) -> None:
        self.folder = folder
        self._ca = ca or trustme.CA()
        self.file = str(folder / "ca.pem")
        self._ca.cert_pem.write_to_path(self.file)

    def intermediate(self, folder: Path) -> Authority:
        """Return an authority that this one has signed."""
        return Authority(folder, self._ca.create_child_ca())

    def server(self, *names: str, file: str = "", ends: datetime | None = None) -> str:
        """Write a certificate with its key for these names, and return the path."""
        return self._write(self._ca.issue_cert(*names, not_after=ends), file or names[0])

    def client(self, name: str, **dates: datetime) -> str:
        """Write a client's certificate with its key, and return the path. dates: not_before, not_after."""
        made = self._ca.issue_cert(
            f"{name}@example.org", common_name=name, organization_name="Ex, Inc.", **dates
        )
        return self._write(made, name)

    def forged(
        self, name: str, *, signed_with: str = "", usage: ObjectIdentifier, names: bytes = b""
    ) -> str:
        """Write a certificate that trustme does not make, and return the path.

        signed_with: the file of a key with its certificate; "" for this authority's own. usage: what the
        certificate is for. names: the content of the extension with the alternative names, in DER.
        """
        signer = Path(signed_with).read_bytes() if signed_with else self._ca.cert_pem.bytes()
        signing = (
            Path(signed_with).read_bytes() if signed_with else self._ca.private_key_pem.bytes()
        )
        issuer = x509.load_pem_x509_certificate(signer)
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = (
            x509.CertificateBuilder(issuer.subject, subject, key.public_key(), 7)
            .not_valid_before(issuer.not_valid_before_utc)
            .not_valid_after(issuer.not_valid_after_utc)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
        )
        if names:
            as_they_are = x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, names)
            builder = builder.add_extension(as_they_are, critical=False)
        made = builder.sign(serialization.load_pem_private_key(signing, None), hashes.SHA256())  # type: ignore[arg-type]
        path = self.folder / f"{name}.pem"
        own = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        chain = signer if signed_with else b""
        path.write_bytes(own + made.public_bytes(serialization.Encoding.PEM) + chain)
        return str(path)

    def _write(self, made: Any, name: str) -> str:
        path = self.folder / f"{name.replace('*', '_')}.pem"
        path.write_bytes(made.private_key_and_cert_chain_pem.bytes())
        return str(path)

    @cached_property
    def trusting(self) -> ssl.SSLContext:
        """A client's context that trusts this authority."""
        return self.context()

    def context(self, certificate: str | None = None) -> ssl.SSLContext:
        """Return a client's context that trusts this authority, with a certificate to show."""
        context = ssl.create_default_context(cafile=self.file)
        if certificate is not None:
            context.load_cert_chain(certificate)
        return context
