"""The sources of the command line's settings: flags, environment variables and one TOML file.

From strongest to weakest: flag, ``PREFORK_*``, ``WEB_CONCURRENCY`` (for ``workers`` only), file,
attributes of the target, default of the command line, default.

One file is read. ``--config FILE`` names it, or ``PREFORK_CONFIG``. Without both the file is
``prefork.toml`` in the working directory, or the table ``[tool.prefork]`` of ``pyproject.toml``
where there is no ``prefork.toml``. In ``prefork.toml`` the settings are top-level keys. The file can also
name what is served, by the keys ``target`` and ``factory``, which are no settings.
"""

from __future__ import annotations

import contextlib
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from prefork.cli.listeners import ListenerTable, take_tables
from prefork.workers.errors import SettingsError
from prefork.workers.layers import Layer
from prefork.workers.settings import ROWS
from prefork.workers.text import nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

CONFIG_VARIABLE: Final = "PREFORK_CONFIG"
_PYPROJECT: Final = "pyproject.toml"

OWN_DEFAULTS: Final = Layer({"client_timeout": 30.0}, lambda _key: "command line's default")
"""Defaults of the command line, which are weaker than every other source.

Without ``client_timeout`` a client that sends nothing would occupy a worker for ever. The library
has no such default, because it cannot know whether a program's handlers can bear a timeout.
"""


class File(msgspec.Struct, frozen=True):
    """What the one file says.

    name: for messages; "" where there is no file. settings: key to raw value, not checked yet. target,
    factory: what is served, and whether a function returns it; None and False where the file has nothing.
    listeners: the tables ``[[listener]]``; their addresses are the ``bind`` of the settings.
    """

    name: str = ""
    settings: Mapping[str, Any] = {}
    target: str | None = None
    factory: bool = False
    listeners: tuple[ListenerTable, ...] = ()


def layers(flags: Mapping[str, object], environ: Mapping[str, str], file: File) -> list[Layer]:
    """Return what flags, environment and file set, weakest first. The values are not checked yet.

    flags: key to raw value, None or () for a flag that was not given. The caller puts OWN_DEFAULTS and the
    attributes of the target below these layers.
    """
    given = {key: raw for key, raw in flags.items() if raw is not None and raw != ()}
    return [
        Layer(file.settings, lambda _key: file.name),
        _environment_layer(environ, {"workers": "WEB_CONCURRENCY"}),
        _environment_layer(environ, {row.key: row.variable for row in ROWS.values()}),
        Layer(given, lambda key: f"flag {ROWS[key].flag}", text=True),
    ]


def misspelt(environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return variables that are probably misspelt, each with the variable that was probably meant.

    Such a variable is reported and not refused. Kubernetes sets PREFORK_PORT and others in every
    pod as soon as a service is called prefork.
    """
    known = [CONFIG_VARIABLE, *(row.variable for row in ROWS.values())]
    strange = [name for name in environ if name.startswith("PREFORK_") and name not in known]
    guesses = ((name, nearest(name, known, cutoff=0.85)) for name in sorted(strange))
    return [(name, guess) for name, guess in guesses if guess is not None]


def _environment_layer(environ: Mapping[str, str], names: Mapping[str, str]) -> Layer:
    # An empty variable counts as unset: compose files and shells can hardly express "unset"
    # otherwise.
    values = {key: environ[name] for key, name in names.items() if environ.get(name)}
    return Layer(values, lambda key: f"environment {names[key]}", text=True)


def read_file(config: str | None, environ: Mapping[str, str]) -> File:
    """Read the file. config: the value of ``--config``.

    SettingsError: the file cannot be read, is not TOML, or its ``target`` or ``factory`` is of another type.
    """
    if config is not None:
        return _read(Path(config), "flag --config")
    if environ.get(CONFIG_VARIABLE):
        return _read(Path(environ[CONFIG_VARIABLE]), f"environment {CONFIG_VARIABLE}")
    if _is_here("prefork.toml"):
        return _read(Path("prefork.toml"), "working directory")
    if _is_here(_PYPROJECT):
        return _read(Path(_PYPROJECT), "working directory", must_have_table=False)
    return File()


def shadowed(config: str | None, environ: Mapping[str, str]) -> bool:
    """Return whether ``[tool.prefork]`` of the pyproject.toml here is not read because of a prefork.toml.

    config: the value of ``--config``. Both files are in use by mistake: one of them says what nothing follows.
    """
    if config is not None or environ.get(CONFIG_VARIABLE):
        return False
    if not (_is_here("prefork.toml") and _is_here(_PYPROJECT)):
        return False
    with contextlib.suppress(SettingsError):  # a file that is not read may be wrong
        tool = _parse(Path(_PYPROJECT), "working directory").get("tool")
        return isinstance(tool, dict) and "prefork" in tool
    return False


def _is_here(name: str) -> bool:
    try:
        return Path(name).is_file()
    except OSError as error:
        reason = (
            f"the working directory cannot be searched for it ({error.strerror}); change to another "
            "directory, or name a file with --config"
        )
        raise SettingsError("config", name, "working directory", reason) from None


def files(config: str | None, environ: Mapping[str, str]) -> list[str]:
    """Return the files that settings may come from, also those that do not exist yet."""
    given = config or environ.get(CONFIG_VARIABLE)
    return [given] if given else ["prefork.toml", _PYPROJECT]


def _read(path: Path, source: str, *, must_have_table: bool = True) -> File:
    content: object = _parse(path, source)
    name = str(path)
    if path.name == _PYPROJECT:
        name = f"{path} [tool.prefork]"
        absent: dict[str, Any] | None = None if must_have_table else {}
        for key in ("tool", "prefork"):
            content = content.get(key, absent) if isinstance(content, dict) else None
    if not isinstance(content, dict):
        raise SettingsError(
            "config",
            str(path),
            source,
            "the file has no table [tool.prefork]; add one, or name another file",
        )
    if isinstance(content.get("prefork"), dict):
        reason = f"in {name} the settings stand at the top level; remove the line [prefork]"
        raise SettingsError("prefork", content["prefork"], name, reason)
    target, factory = content.pop("target", None), content.pop("factory", False)
    if not isinstance(target, str | None):
        raise SettingsError("target", target, name, 'it must be text, such as "app:Handler"')
    if not isinstance(factory, bool):
        raise SettingsError("factory", factory, name, "it must be true or false, without quotes")
    listeners = take_tables(content, name)
    return File(name, content, target, factory, listeners)


def _parse(path: Path, source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = f"the file cannot be read ({error.strerror}); check its path and permissions"
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        reason = f"the file is not valid TOML: {error}"
        if path.suffix == ".py":
            reason = f"it is no TOML; for a file of gunicorn, prefork config --from-gunicorn {path} prints its settings"
    raise SettingsError("config", str(path), source, reason)
