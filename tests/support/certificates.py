"""Certificates for tests, made by trustme: an authority, servers and clients."""

from __future__ import annotations

import ssl
from functools import cached_property
from typing import TYPE_CHECKING, Any

import trustme

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path


class Authority:
    """One authority, whose files go to a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ca = trustme.CA()
        self.file = str(folder / "ca.pem")
        self._ca.cert_pem.write_to_path(self.file)

    def server(self, *names: str, file: str = "", ends: datetime | None = None) -> str:
        """Write a certificate with its key for these names, and return the path."""
        return self._write(self._ca.issue_cert(*names, not_after=ends), file or names[0])

    def client(self, name: str) -> str:
        """Write a client's certificate with its key, and return the path."""
        return self._write(
            self._ca.issue_cert(
                f"{name}@example.org", common_name=name, organization_name="Ex, Inc."
            ),
            name,
        )

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
