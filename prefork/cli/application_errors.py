"""Errors of the application, reported as its own: the traceback begins with the application's first frame."""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
import traceback
from collections.abc import Iterator
from pathlib import Path

from prefork.host.addresses import Address
from prefork.host.bind_errors import bind_reason
from prefork.workers.errors import BindError, BootError, PreforkError


@contextlib.contextmanager
def application_errors(what: str, address: Address | None = None) -> Iterator[None]:
    """Turn what the application raises in the body into BootError, and a failed bind into BindError.

    what: the beginning of the message, such as "factory make() failed". address: the address that
    is bound in the body, None where that is known only from the server object.
    """
    try:
        yield
    except PreforkError:
        raise
    except OSError as error:
        _raise_if_bind_failed(error, address)
        raise BootError(f"{what}: {_one_line(error)}", application_report(error)) from None
    except Exception as error:  # noqa: BLE001 - the application may raise anything
        raise BootError(f"{what}: {_one_line(error)}", application_report(error)) from None
    except SystemExit as stop:
        said = f"the application called sys.exit({'' if stop.code is None else repr(stop.code)})"
        raise BootError(f"{what}: {said}", application_report(stop)) from None


def _one_line(error: BaseException) -> str:
    first = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _raise_if_bind_failed(error: OSError, address: Address | None) -> None:
    """Raise BindError where the traceback goes through a server's binding or activation."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name in ("server_bind", "server_activate"):
            server = frame.f_locals.get("self")
            where = getattr(server, "server_address", None)
            text = str(address) if address is not None else _address_text(where)
            kind = getattr(server, "socket_type", socket.SOCK_STREAM)
            raise BindError(text, bind_reason(error, where, kind)) from None


def _address_text(server_address: object) -> str:
    if isinstance(server_address, tuple):
        return ":".join(map(str, server_address[:2]))
    return str(server_address)


def application_report(error: BaseException) -> str:
    """Return the traceback of an application's exception, without the frames of prefork that called it.

    "" if no code of the application had run: then the message says all that the report would say.
    """
    report = traceback.TracebackException.from_exception(error)
    _drop_our_frames(report)
    has_more = report.stack or report.__cause__ or report.__context__
    if not has_more and not isinstance(error, SyntaxError):
        return ""
    return "".join(report.format())


def _drop_our_frames(report: traceback.TracebackException) -> None:
    """Remove the import machinery everywhere, and prefork up to the application's first frame.

    Later frames of prefork stay: the application has called them. The causes are treated in the
    same way.
    """
    kept = [frame for frame in report.stack if not _is_import_machinery(frame.filename)]
    while kept and _is_ours(kept[0].filename):
        kept.pop(0)
    report.stack = traceback.StackSummary.from_list(kept)
    for other in (report.__cause__, report.__context__):
        if other is not None:
            _drop_our_frames(other)


def frames_of_application(error: BaseException) -> bool:
    """Return whether the application's own code was running when an exception was raised."""
    return any(
        not _is_ours(frame.f_code.co_filename)
        and not _is_import_machinery(frame.f_code.co_filename)
        for frame, _ in traceback.walk_tb(error.__traceback__)
    )


_OUR_DIRECTORY = (
    str(Path(__file__).parent.parent) + os.sep
)  # the package, and what is linked into it
_IMPORT_MACHINERY = ("<frozen importlib", str(Path(importlib.__file__).parent) + os.sep)


def _is_ours(filename: str) -> bool:
    return filename.startswith(_OUR_DIRECTORY)


def _is_import_machinery(filename: str) -> bool:
    return filename.startswith(_IMPORT_MACHINERY)
