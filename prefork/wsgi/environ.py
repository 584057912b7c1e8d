"""The environment of a request, as PEP 3333 describes it (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from prefork.wsgi.forwarded import Forwarded
from prefork.wsgi.head import Head
from prefork.wsgi.tls_variables import native, tls_variables

_MOST_NAMES: Final = 512
"""Names of fields whose keys are kept. A client can invent names, but not fill the memory with them."""

_keys: dict[bytes, str] = {}


def environ_of(
    head: Head,
    base: Mapping[str, Any],
    client_address: Any,
    forwarded: Forwarded | None = None,
) -> dict[str, Any]:
    """Return the environment of a request.

    base: what is the same for all requests of the server. client_address: as socketserver has it, with
    the attributes of ``prefork.ClientAddress`` where an edge is before the handler. forwarded: what a proxy that is
    believed has said, None without one.
    """
    environ = dict(base)
    environ["REQUEST_METHOD"] = head.method
    environ["PATH_INFO"] = _unquoted(head.path)
    environ["QUERY_STRING"] = head.query
    environ["REQUEST_URI"] = environ["RAW_URI"] = head.target
    environ["SERVER_PROTOCOL"] = "HTTP/1.1" if head.is_newest else "HTTP/1.0"
    _add_client(environ, client_address)
    if forwarded is not None:
        _add_forwarded(environ, forwarded)
    _add_fields(environ, head.fields)
    return environ


def base_environ(name: str, port: str, errors: Any, file_wrapper: Any) -> dict[str, Any]:
    """Return what the environments of all requests of a server have in common.

    name, port: of the address that the server listens on.
    """
    return {
        "SCRIPT_NAME": "",
        "SERVER_NAME": name,
        "SERVER_PORT": port,
        "GATEWAY_INTERFACE": "CGI/1.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.errors": errors,
        "wsgi.multithread": False,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "wsgi.input_terminated": True,
        "wsgi.file_wrapper": file_wrapper,
    }


def _unquoted(path: str) -> str:
    return path if "%" not in path else unquote_to_bytes(path).decode("latin-1")


def _add_client(environ: dict[str, Any], address: Any) -> None:
    if isinstance(address, tuple):
        environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = str(address[0]), str(address[1])
    else:
        environ["REMOTE_ADDR"] = ""
    if (identity := getattr(address, "identity", None)) is not None:
        environ["REMOTE_USER"] = native(str(identity))
    if (tls := getattr(address, "tls", None)) is not None:
        environ["wsgi.url_scheme"], environ["HTTPS"] = "https", "on"
        environ.update(tls_variables(tls))


def _add_forwarded(environ: dict[str, Any], forwarded: Forwarded) -> None:
    """Put the client of a proxy in the place of the proxy. Its port is not known."""
    if forwarded.client is not None:
        environ["REMOTE_ADDR"] = forwarded.client
        environ.pop("REMOTE_PORT", None)
    if forwarded.scheme == "https":
        environ["wsgi.url_scheme"], environ["HTTPS"] = "https", "on"
    elif forwarded.scheme == "http":
        environ["wsgi.url_scheme"] = "http"
        environ.pop("HTTPS", None)


def _add_fields(environ: dict[str, Any], fields: list[tuple[bytes, bytes]]) -> None:
    for name, value in fields:
        key = _keys.get(name) or _key_of(name)
        if not key:
            continue
        text = value.decode("latin-1")
        before = environ.get(key)
        if before is not None:
            text = f"{before}{'; ' if key == 'HTTP_COOKIE' else ','}{text}"
        environ[key] = text


def _key_of(name: bytes) -> str:
    """Return the key of a field; "" for a field that is left out.

    A name with an underscore is left out. Its key would be that of the name with a hyphen, so that a
    client could put in what only a proxy may say: X_Forwarded_For for X-Forwarded-For. ``Proxy`` is left
    out because programs take HTTP_PROXY for the address of a proxy of their own.
    """
    if b"_" in name or name == b"proxy":
        return ""
    key = name.decode("ascii").upper().replace("-", "_")
    if key not in {"CONTENT_TYPE", "CONTENT_LENGTH"}:
        key = f"HTTP_{key}"
    if len(_keys) < _MOST_NAMES:
        _keys[name] = key
    return key
