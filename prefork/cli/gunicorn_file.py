"""Reading a gunicorn.conf.py, which is a Python program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefork.cli.application_errors import application_errors
from prefork.cli.gunicorn import KNOWN
from prefork.workers.errors import SettingsError


def read_gunicorn(path: str) -> dict[str, Any]:
    """Run a gunicorn.conf.py, and return the settings of gunicorn among its variables, in their order.

    SettingsError: the file cannot be read. BootError: its code raises an exception.
    """
    try:
        source = Path(path).read_bytes()
    except OSError as error:
        reason = f"the file cannot be read ({error.strerror}); check its path and permissions"
        raise SettingsError("from-gunicorn", path, "flag --from-gunicorn", reason) from None
    variables: dict[str, Any] = {"__name__": "__config__", "__file__": path}
    with application_errors(f"{path} cannot be run"):
        exec(compile(source, path, "exec"), variables)  # noqa: S102 - the file is a program of the user
    return {name: value for name, value in variables.items() if name in KNOWN}
