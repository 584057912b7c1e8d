"""Where the command line's raw settings come from: flags, environment, a TOML file.

From strongest to weakest: flag, ``PREFORK_*``, ``WEB_CONCURRENCY`` (workers only), file, the
target's attributes, the command line's own default, default. One file is read: ``--config FILE``,
else ``prefork.toml`` of the working directory, else the ``[tool.prefork]`` table of its
``pyproject.toml`` if there is one. In ``prefork.toml`` the settings are top-level keys.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from prefork.workers.errors import SettingsError
from prefork.workers.layers import Layer, nearest
from prefork.workers.settings import ROWS

if TYPE_CHECKING:
    from collections.abc import Mapping

CONFIG_VARIABLE: Final = "PREFORK_CONFIG"
_PYPROJECT: Final = "pyproject.toml"

OWN_DEFAULTS: Final = Layer({"client_timeout": 30.0}, lambda _key: "command line's default")
"""What the command line wants where nobody says otherwise: a client that says nothing would occupy a
worker for ever. A library cannot know that its handlers bear it; here an operator is asked to.
"""


def layers(
    flags: Mapping[str, object], environ: Mapping[str, str], config: str | None
) -> list[Layer]:
    """Collect what was set, weakest first. flags: key to raw value, None or () where not given.

    Below it belong the target's attributes and OWN_DEFAULTS. Raises SettingsError for a file that is missing or no TOML; values are checked later.
    """
    given = {key: raw for key, raw in flags.items() if raw is not None and raw != ()}
    return [
        _file_layer(config, environ),
        _environment_layer(environ, {"workers": "WEB_CONCURRENCY"}),
        _environment_layer(environ, {row.key: row.variable for row in ROWS.values()}),
        Layer(given, lambda key: f"flag {ROWS[key].flag}", text=True),
    ]


def misspelt(environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """Find variables that look like ours and are not, each with the one that was probably meant.

    They are told, not refused: Kubernetes gives every pod PREFORK_PORT and the like when a
    service is called prefork.
    """
    known = [CONFIG_VARIABLE, *(row.variable for row in ROWS.values())]
    strange = [name for name in environ if name.startswith("PREFORK_") and name not in known]
    guesses = ((name, nearest(name, known, cutoff=0.85)) for name in sorted(strange))
    return [(name, guess) for name, guess in guesses if guess is not None]


def _environment_layer(environ: Mapping[str, str], names: Mapping[str, str]) -> Layer:
    # An empty variable is how compose files and shells say "not set".
    values = {key: environ[name] for key, name in names.items() if environ.get(name)}
    return Layer(values, lambda key: f"environment {names[key]}", text=True)


def _file_layer(config: str | None, environ: Mapping[str, str]) -> Layer:
    if config is not None:
        return _read(Path(config), "flag --config")
    if environ.get(CONFIG_VARIABLE):
        return _read(Path(environ[CONFIG_VARIABLE]), f"environment {CONFIG_VARIABLE}")
    if Path("prefork.toml").is_file():
        return _read(Path("prefork.toml"), "working directory")
    if Path(_PYPROJECT).is_file():
        return _read(Path(_PYPROJECT), "working directory", must_have_table=False)
    return Layer({}, str)


def files(config: str | None, environ: Mapping[str, str]) -> list[str]:
    """Name the files that decide the settings, also those that are not there (yet)."""
    given = config or environ.get(CONFIG_VARIABLE)
    return [given] if given else ["prefork.toml", _PYPROJECT]


def _read(path: Path, source: str, *, must_have_table: bool = True) -> Layer:
    content: object = _parse(path, source)
    name = str(path)
    if path.name == _PYPROJECT:
        name = f"{path} [tool.prefork]"
        absent: dict[str, Any] | None = None if must_have_table else {}
        for key in ("tool", "prefork"):
            content = content.get(key, absent) if isinstance(content, dict) else None
    if not isinstance(content, dict):
        raise SettingsError("config", str(path), source, "the file has no table [tool.prefork]")
    return Layer(content, lambda _key: name)


def _parse(path: Path, source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = f"the file cannot be read ({error.strerror})"
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        reason = f"the file is not TOML: {error}"
    raise SettingsError("config", str(path), source, reason)
