"""TLS: the context that the master makes once, the handshake in the worker, and the end (both).

**One context before the fork.** The master loads certificates and keys into one ``SSLContext``, and
the workers inherit it. Making a context takes milliseconds, which each connection would pay
otherwise. And the keys with which the context encrypts session tickets are inherited, too: a
ticket that one worker has given is accepted by all. A reload makes a new context, whose workers
answer an old ticket with a full handshake.

**Several certificates** have a context each, because a context shows one. All begin with the first, and
a function that OpenSSL calls for the name in the client's first message (SNI) puts another one in its
place. Tickets belong to the first context, so that one kind of ticket serves all names.

**The handshake** is a step of the edge. ``wrap_socket()`` takes the descriptor out of the plain socket
and puts it into a new one. Python's ``do_handshake()`` counts its timeout for all reads and writes
together, so that a client cannot stretch it.

**The end.** TLS ends with an alert, *close_notify*, by which a client knows that nothing was cut off. It
is sent when the handler has returned in order, and not after an exception: what the client has got then
is not whole. The alert of the client is not waited for.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import sys
from collections.abc import Callable, Mapping
from time import monotonic, monotonic_ns, time
from typing import Any, Final

import msgspec

from prefork.edge.certificates import (
    Certificate,
    by_name,
    grouped,
    identity_in,
    read_certificate,
    why_unfit,
)
from prefork.edge.client import TLSFacts
from prefork.edge.passage import Passage, Refused
from prefork.edge.x509 import parse_certificates
from prefork.workers.scoreboard import HandshakeKind
from prefork.workers.states import Rejection
from prefork.workers.worker.side import current_account

CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""The cipher suites of TLS 1.2: with forward secrecy, and authenticated encryption. TLS 1.3 has no others."""

GOODBYE: Final = 1.0
"""Seconds for which a worker waits until close_notify can be sent, where the client reads slowly."""

LONGEST_PASSWORD: Final = 1024
"""Bytes of the longest password that OpenSSL takes from Python."""

_UNREAD: Final = 65_536
"""Bytes of a refused client that are read before its connection is closed."""

# Plain numbers: a member of an enumeration costs a look-up each time.
_WRITING: Final = int(socket.SHUT_WR)
_CORK: Final = (int(socket.IPPROTO_TCP), int(socket.TCP_CORK), 1)

_ASKED: Final = "_prefork_server_name"
"""The attribute of an SSLSocket for the name that its client asked for."""


class TLSFiles(msgspec.Struct, frozen=True):
    """What the settings say. keys: one for each certificate; none where the certificates' files have them.

    Paths; None for none.
    """

    certificates: tuple[str, ...]
    keys: tuple[str, ...] = ()
    password_file: str | None = None
    client_ca: str | None = None
    alpn: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[str, ...]:
        """Every file that is read."""
        others = (self.password_file, self.client_ca)
        return (*self.certificates, *self.keys, *(one for one in others if one is not None))


class Loaded(msgspec.Struct, frozen=True):
    """A context that can serve, and the certificates in it; none are known of a program's own context."""

    context: ssl.SSLContext
    certificates: tuple[Certificate, ...] = ()


class TLSSettingError(ValueError):
    """A file cannot be used. key: the setting. Its text says why."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(reason)
        self.key = key


# --- the context (master)


def load(files: TLSFiles, now: float | None = None) -> Loaded:
    """Return the context of these files. TLSSettingError: one of them cannot be used.

    Each certificate must be valid now and belong to its key. now: Unix time, None for the clock's.
    """
    keys = files.keys or files.certificates
    if len(keys) != len(files.certificates):
        reason = f"there are {len(keys)} keys for {len(files.certificates)} certificates; give each its key"
        raise TLSSettingError("tls_key", reason)
    key_setting = "tls_key" if files.keys else "tls_certificate"
    password = _password(files.password_file, key_setting)
    now = time() if now is None else now
    certificates = [_certificate(path, now) for path in files.certificates]
    contexts = []
    by_names: dict[str, ssl.SSLContext] = {}
    for group in _groups(certificates):
        context = _context(files, now)
        for place in group:
            chain = certificates[place].file, keys[place], password
            _load_chain(context, *chain, setting=key_setting)
        for name in certificates[group[0]].names:
            by_names.setdefault(name, context)
        contexts.append(context)
    contexts[0].sni_callback = _chooser(by_names)
    _drop_malformed_names()
    return Loaded(contexts[0], tuple(certificates))


def _groups(certificates: list[Certificate]) -> list[list[int]]:
    try:
        return grouped(certificates)
    except ValueError as error:
        raise TLSSettingError("tls_certificate", str(error)) from None


def _password(path: str | None, key_setting: str) -> Callable[[], bytes]:
    if path is None:
        # Without this function OpenSSL would ask at the terminal.
        def missing() -> bytes:
            reason = "the key is encrypted; give tls_key_password_file, too"
            raise TLSSettingError(key_setting, reason)

        return missing
    try:
        with open(path, "rb") as file:
            content = file.read(LONGEST_PASSWORD + 3).rstrip(b"\r\n")
    except (OSError, ValueError) as error:
        raise TLSSettingError("tls_key_password_file", _unreadable(path, error)) from None
    if len(content) > LONGEST_PASSWORD:
        reason = f"{path} has more than a password, which has {LONGEST_PASSWORD} bytes at most"
        raise TLSSettingError("tls_key_password_file", reason)
    return lambda: content


def _certificate(path: str, now: float) -> Certificate:
    try:
        certificate = read_certificate(path)
    except OSError as error:
        raise TLSSettingError("tls_certificate", _unreadable(path, error)) from None
    except ValueError as error:
        raise TLSSettingError("tls_certificate", str(error)) from None
    if reason := why_unfit(certificate, now):
        raise TLSSettingError("tls_certificate", reason)
    return certificate


def _context(files: TLSFiles, now: float) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_ciphers(CIPHERS)
    # OpenSSL gives a client of TLS 1.3 two tickets. Making the second one and its packet is a twentieth of what
    # a short connection costs, and a client that comes back gets another one then.
    context.num_tickets = 1
    if files.alpn:
        try:
            context.set_alpn_protocols(files.alpn)
        except (ssl.SSLError, UnicodeEncodeError):
            reason = "the name of a protocol has 1 to 255 bytes of ASCII"
            raise TLSSettingError("tls_alpn", reason) from None
    if files.client_ca is not None:
        _ask_certificates(context, files.client_ca, now)
    return context


def _ask_certificates(context: ssl.SSLContext, path: str, now: float) -> None:
    """Have clients show a certificate that one of the authorities in a file has signed."""
    context.verify_mode = ssl.CERT_REQUIRED
    # The file may name an intermediate authority alone, so that only its clients are admitted, and not all of the root's.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        with open(path, "rb") as file:
            authorities = parse_certificates(file.read())
        context.load_verify_locations(path)
    except ssl.SSLError:
        reason = f"{path} has no certificate in PEM form"
        raise TLSSettingError("tls_client_ca", reason) from None
    except (OSError, ValueError) as error:
        raise TLSSettingError("tls_client_ca", _unreadable(path, error)) from None
    if not any(one.begins <= now < one.ends for one in authorities):
        reason = f"{path} has no authority that is valid now, so that no client could connect"
        raise TLSSettingError("tls_client_ca", reason)


def _load_chain(
    context: ssl.SSLContext,
    certificate: str,
    key: str,
    password: Callable[[], bytes],
    *,
    setting: str,
) -> None:
    was_asked = False

    def asked() -> bytes:
        nonlocal was_asked
        was_asked = True
        return password()

    try:
        with open(key, "rb"):
            pass
        context.load_cert_chain(certificate, key, asked)
    except ssl.SSLError as error:
        if was_asked and error.reason != "KEY_VALUES_MISMATCH":
            reason = f"the password in tls_key_password_file does not open {key}"
            raise TLSSettingError("tls_key_password_file", reason) from None
        reason = _why_no_chain(certificate, key, error)
        raise TLSSettingError(setting, reason) from None
    except TLSSettingError:
        raise
    except (OSError, ValueError) as error:
        raise TLSSettingError(setting, _unreadable(key, error)) from None


def _why_no_chain(certificate: str, key: str, error: ssl.SSLError) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"the key in {key} does not belong to the certificate in {certificate}"
    reason = f"{key} has no private key that can be used, in PEM form ({error.reason or error})"
    return f"{reason}; give the file of the key as tls_key" if key == certificate else reason


def _unreadable(path: str, error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error)
    return f"{path} cannot be read ({reason}); check the path and its permissions"


def _chooser(by_names: dict[str, ssl.SSLContext]) -> Callable[[Any, Any, Any], None]:
    """Return what puts the context of the name that a client asks for in place of the first."""
    several = len({id(one) for one in by_names.values()}) > 1

    def choose(sock: Any, name: Any, _context: Any) -> None:
        if name is None:
            return
        setattr(sock, _ASKED, name)
        if several and (found := by_name(by_names, name)) is not None:
            sock.context = found

    return choose


def note_server_names(context: ssl.SSLContext) -> None:
    """Have the connections of a program's own context note the name that the client asks for.

    The program's own ``sni_callback`` is called as before.
    """
    own: Callable[..., int | None] | None = context.sni_callback
    if getattr(own, "notes_server_names", False):
        return

    def note(sock: Any, name: Any, called_for: Any) -> int | None:
        setattr(sock, _ASKED, name)
        return None if own is None else own(sock, name, called_for)

    note.notes_server_names = True  # type: ignore[attr-defined]
    context.sni_callback = note
    _drop_malformed_names()


def _drop_malformed_names() -> None:
    """Keep server names that are no ASCII out of the standard error of every worker.

    Python decodes the name of the client's first message before it calls ``sni_callback``. Where that
    fails it ends the handshake, and gives the exception to ``sys.unraisablehook``, which writes a
    traceback. So any client could fill the log. Such an exception comes with the bytes of the name as
    its object, as no other does.
    """
    hook = sys.unraisablehook
    if getattr(hook, "drops_malformed_names", False):
        return

    def drop(unraisable: sys.UnraisableHookArgs) -> None:
        is_name = isinstance(unraisable.object, bytes)
        if not (is_name and isinstance(unraisable.exc_value, UnicodeDecodeError)):
            hook(unraisable)

    drop.drops_malformed_names = True  # type: ignore[attr-defined]
    sys.unraisablehook = drop


# --- the handshake (worker)


def tls_step(context: ssl.SSLContext) -> Callable[[Passage], None]:
    """Return the step that encrypts a connection."""
    # This takes ssl 20 µs to say, which each connection would pay.
    asks_certificate = context.verify_mode is not ssl.CERT_NONE
    wrap = context.wrap_socket

    def shake_hands(passage: Passage) -> None:
        began = monotonic_ns()
        sock = passage.request
        passage.allow_time(sock)
        secured = wrap(sock, server_side=True, do_handshake_on_connect=False)
        try:
            secured.do_handshake()
            passage.tls = tls = _facts(secured, asks_certificate)
            if tls.resumed and tls.certificate is not None:
                _refuse_ended(tls.certificate)
        except BaseException as error:  # noqa: BLE001 - also an order to end that comes as an exception
            _drop_unread(secured)
            secured.close()  # the plain socket has no descriptor any more
            raise _as_refusal(error) from None
        passage.request = secured
        account = current_account()
        if account is not None:
            kind = _COUNTED.get((tls.version, tls.resumed), _OTHER)
            account.note_handshake(kind, monotonic_ns() - began)
        if tls.certificate is not None:
            passage.identity = identity_in(tls.certificate)

    return shake_hands


def _refuse_ended(certificate: Mapping[str, Any]) -> None:
    """Refuse a certificate that has ended. OpenSSL does not look at it again when a session is resumed."""
    if ssl.cert_time_to_seconds(certificate["notAfter"]) <= time():
        raise Refused(Rejection.TLS, "client certificate: certificate has expired")


def _drop_unread(secured: ssl.SSLSocket) -> None:
    """Read what a refused client has sent already.

    Otherwise the kernel would reset the connection when it is closed, and the client might lose the alert
    that says why it was refused.
    """
    with contextlib.suppress(OSError):
        secured.settimeout(0)  # or recv() would wait for a client that is silent
        secured.shutdown(socket.SHUT_WR)
        secured.recv(_UNREAD)  # plain bytes: shutdown() has ended TLS


def _facts(secured: ssl.SSLSocket, asks_certificate: bool) -> TLSFacts:
    cipher = secured.cipher()
    return TLSFacts(
        secured.version() or "",
        cipher[0] if cipher else "",
        vars(secured).get(_ASKED),
        secured.selected_alpn_protocol(),
        secured.session_reused or False,
        (secured.getpeercert() or None) if asks_certificate else None,
    )


def _as_refusal(error: BaseException) -> BaseException:
    """Return how a failed handshake is reported: a client that went away is not one that failed."""
    if isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        return ConnectionError("the client has closed the connection in the handshake")
    if isinstance(error, TimeoutError):
        return TimeoutError("the handshake was not over within edge_timeout")
    if isinstance(error, ssl.SSLCertVerificationError):
        return Refused(Rejection.TLS, f"client certificate: {error.verify_message}")
    if isinstance(error, ssl.SSLError):
        return Refused(Rejection.TLS, (error.reason or str(error)).lower().replace("_", " "))
    # Raised by getpeercert(): an authority has signed bytes that are no UTF-8.
    if isinstance(error, UnicodeDecodeError):
        return Refused(Rejection.TLS, "client certificate: a name in it is no text")
    return error


_COUNTED: Final = {
    ("TLSv1.3", False): HandshakeKind.TLS_1_3,
    ("TLSv1.3", True): HandshakeKind.TLS_1_3_RESUMED,
    ("TLSv1.2", True): HandshakeKind.TLS_1_2_RESUMED,
}
"""How a handshake counts, by its version and whether it has resumed a session."""

_OTHER: Final = HandshakeKind.TLS_1_2
"""How all others count: those of older versions, too, which a program's own context may allow."""


# --- the end (worker)


def end_of_tls(request: Any, went_well: bool) -> None:
    """Close an encrypted connection: with close_notify if all went well."""
    if not isinstance(request, ssl.SSLSocket) or request.fileno() < 0:
        return
    if went_well:
        _hold_back(request)
        _send_close_notify(request)
    with contextlib.suppress(OSError):
        request.shutdown(_WRITING)
    request.close()


def _hold_back(secured: ssl.SSLSocket) -> None:
    """Have the kernel send close_notify and the end of the connection in one packet."""
    with contextlib.suppress(OSError):  # a Unix socket
        secured.setsockopt(*_CORK)


def _send_close_notify(secured: ssl.SSLSocket) -> None:
    # unwrap() sends the alert, and then waits for that of the client. A socket that does not wait has it
    # raise SSLWantReadError once the alert is sent, and SSLWantWriteError while there is no room for it.
    until = monotonic() + GOODBYE
    secured.settimeout(0)
    while True:
        try:
            secured.unwrap()
        except ssl.SSLWantWriteError:
            if not _has_room(secured, until - monotonic()):
                return
        except (
            OSError,
            ValueError,
        ):  # the alert is sent, or cannot be; ValueError: the handler has ended TLS
            return
        else:
            return


def _has_room(secured: ssl.SSLSocket, seconds: float) -> bool:
    poll = select.poll()
    poll.register(secured, select.POLLOUT)
    return seconds > 0 and bool(poll.poll(seconds * 1000))
