"""``--chdir`` and ``--env-file``: where a command works, and with which variables.

Both take effect while the command line is read, before a settings file is looked for and before the
application is imported. A reload runs the command again as it was started, so the folder is changed
and the file is read again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from prefork.workers.errors import SettingsError


def change_folder(path: str | None) -> None:
    """Change the working directory; SettingsError where that is impossible. None changes nothing."""
    if path is None:
        return
    try:
        os.chdir(path)
    except OSError as error:
        reason = (
            f"the directory cannot be entered ({error.strerror}); check its path and permissions"
        )
        raise SettingsError("chdir", path, "flag --chdir", reason) from None


def load_all(paths: Iterable[str]) -> None:
    """Set the variables of these files, as ``load()`` does; the first file that has one counts."""
    for path in paths:
        load(path)


def load(path: str) -> None:
    """Set the variables of a file of lines ``NAME=value``; a variable that is set already stays.

    SettingsError: the file cannot be read, or the package that reads it is not installed.
    """
    try:
        import dotenv  # noqa: PLC0415 - an optional extra
    except ModuleNotFoundError:
        reason = (
            "--env-file needs the package python-dotenv; install it by pip install 'prefork[env]'"
        )
        raise SettingsError("env_file", path, "flag --env-file", reason) from None
    try:
        with open(path, encoding="utf-8") as file:
            dotenv.load_dotenv(stream=file, override=False)
    except OSError as error:
        reason = f"the file cannot be read ({error.strerror}); check its path and permissions"
    except UnicodeDecodeError as error:
        reason = f"the file is not UTF-8 text ({error.reason})"
    else:
        return
    raise SettingsError("env_file", path, "flag --env-file", reason)
