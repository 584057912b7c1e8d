"""Errors of the application: told as its own, with a traceback that has no frame of prefork's."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from prefork.host.addresses import Address
from prefork.workers.errors import BindError, BootError, PreforkError


@contextlib.contextmanager
def application_errors(what: str, address: Address | None = None) -> Iterator[None]:
    """Turn whatever the application raises into BootError, and a failed bind into BindError."""
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
        said = f"it called sys.exit({'' if stop.code is None else repr(stop.code)})"
        raise BootError(f"{what}: {said}", application_report(stop)) from None


def _one_line(error: BaseException) -> str:
    first = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _raise_if_bind_failed(error: OSError, address: Address | None) -> None:
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name in ("server_bind", "server_activate"):
            where = getattr(frame.f_locals.get("self"), "server_address", None)
            _raise_bind_error(str(address) if address is not None else _address_text(where), error)


def _address_text(server_address: object) -> str:
    if isinstance(server_address, tuple):
        return ":".join(map(str, server_address[:2]))
    return str(server_address)


def _raise_bind_error(where: str, error: OSError) -> NoReturn:
    reason = error.strerror or str(error)
    if error.errno == errno.EADDRINUSE:
        reason = "the address is in use; stop what listens there, or choose another"
    elif error.errno == errno.EADDRNOTAVAIL:
        reason = "this machine does not have that address"
    raise BindError(where, reason) from None


def application_report(error: BaseException) -> str:
    """Render an application's exception without the frames through which prefork called it."""
    told = traceback.TracebackException.from_exception(error)
    _drop_our_frames(told)
    return "".join(told.format())


def _drop_our_frames(told: traceback.TracebackException) -> None:
    kept = [frame for frame in told.stack if not _is_import_machinery(frame.filename)]
    while kept and _is_ours(kept[0].filename):
        kept.pop(0)
    told.stack = traceback.StackSummary.from_list(kept)
    for other in (told.__cause__, told.__context__):
        if other is not None:
            _drop_our_frames(other)


def frames_of_application(error: BaseException) -> bool:
    """Return whether the application's own code was running when an exception was raised."""
    return any(
        not _is_ours(frame.f_code.co_filename)
        and not _is_import_machinery(frame.f_code.co_filename)
        for frame, _ in traceback.walk_tb(error.__traceback__)
    )


_OUR_DIRECTORY = str(Path(__file__).parent.parent) + os.sep  # prefork, and what is linked into it
_IMPORT_MACHINERY = ("<frozen importlib", str(Path(importlib.__file__).parent) + os.sep)


def _is_ours(filename: str) -> bool:
    return filename.startswith(_OUR_DIRECTORY)


def _is_import_machinery(filename: str) -> bool:
    return filename.startswith(_IMPORT_MACHINERY)
