"""Host names and IP addresses as text: what is one, and how a port is written behind it (pure)."""

from __future__ import annotations

import ipaddress
import re
from typing import Final

LONGEST_LABEL: Final = 63
"""Letters of one part of a host name, as DNS has it."""

LONGEST_NAME: Final = 253
"""Letters of a host name with all its parts and dots, as DNS has it."""

_FORM: Final = re.compile(r"(?!-)[\w-]+(\.[\w-]+)*\.?")


def has_form_of_name(text: str) -> bool:
    """Return whether a text has only the characters of a host name, and its dots in their places."""
    return _FORM.fullmatch(text) is not None


def is_host_name(text: str) -> bool:
    """Return whether a resolver could know this name: ``web1``, ``db.example.``, ``bücher.example``.

    A text of digits and dots alone is no name, because it is read as an IPv4 address.
    """
    if not has_form_of_name(text) or text.replace(".", "").isdecimal():
        return False
    name = text.removesuffix(".")
    if not name.isascii():  # only here, because loading the codec takes some milliseconds
        try:
            name = name.encode("idna").decode("ascii")
        except UnicodeError:
            return False
    return len(name) <= LONGEST_NAME and max(map(len, name.split("."))) <= LONGEST_LABEL


def is_ipv4(text: str) -> bool:
    """Return whether a text is an IPv4 address with four numbers."""
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True


def is_ipv6(text: str) -> bool:
    """Return whether a text is an IPv6 address, without brackets and without a zone such as ``%eth0``."""
    try:
        return ipaddress.IPv6Address(text).scope_id is None
    except ValueError:
        return False


def is_portable_host(text: str) -> bool:
    """Return whether a text is a name or an address that any program on any machine reads in the same way.

    A name with other letters than ASCII is none, because only some programs translate it. A zone means
    something on one machine alone.
    """
    return (text.isascii() and is_host_name(text)) or is_ipv4(text) or is_ipv6(text)


def with_port(host: str, port: int) -> str:
    """Return a host and a port as URLs have them: ``web1:80``, ``10.0.0.1:80``, ``[fd00::1]:80``."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
