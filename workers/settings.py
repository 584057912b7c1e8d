"""Every setting, once: the fields of ``Settings`` are the table that all surfaces are made from.

One field gives the TOML key, the flag, the environment variable, the class attribute, the
default, the help sentence and what is allowed. Raw values arrive in layers (defaults, class
attributes, file, environment, flags); ``resolve`` lets the last layer win, refuses whatever is
wrong by naming key, value, source and what is allowed, and remembers where each value came from.
"""

from __future__ import annotations

import difflib
import functools
import grp
import pwd
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, get_type_hints

import msgspec
from msgspec import Meta

from prefork.workers.cpus import Usable, usable_cpus
from prefork.workers.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

AUTO: Final = "auto"
DEFAULT: Final = "default"
"""The origin of a value that nobody gave."""

MOST_CHILDREN: Final = 4096
LONGEST: Final = 7 * 86_400.0
"""Seconds; a timeout of more than a week is a mistyped unit, and every wait stays within epoll's range."""

_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*(ms|s|m|h|)", re.ASCII)


class Automatic(int):
    """A number of workers that nobody asked for, so that ``max_children`` may lower it silently."""

    __slots__ = ()


# --- how raw values of one kind are read and shown -------------------------------------------


def _same(value: Any) -> Any:
    return value


def _seconds(raw: object) -> object:
    """Read ``30``, ``30s``, ``500ms``, ``5m`` as seconds; numbers stay as they are."""
    if not isinstance(raw, str):
        return raw
    match = _DURATION.fullmatch(raw.strip())
    if match is None:
        raise ValueError(raw)
    return float(match[1]) * _UNITS[match[2]]


def _show_seconds(value: float) -> str:
    return f"{value * 1000:g}ms" if 0 < value < 1 else f"{value:.10g}s"


def _octal(raw: object) -> object:
    """Read text as an octal file mode mask (``022``, ``0o22``); an integer is taken as it is."""
    if not isinstance(raw, str):
        return raw
    return int(raw.strip().lower().removeprefix("0o"), 8)


def _show_octal(value: int) -> str:
    return f"{value:03o}"


def _account(exists: Callable[[str], object]) -> Callable[[object], object]:
    """Read a user or group: a name that this machine knows, or a number that it need not know."""

    def read(raw: object) -> object:
        if not isinstance(raw, str):
            return raw
        if raw.isascii() and raw.isdigit():
            return int(raw)
        try:
            exists(raw)
        except KeyError:
            raise ValueError(raw) from None
        return raw

    return read


def _list(raw: object) -> object:
    """Read one text as a list separated by spaces or commas; a list stays as it is."""
    return raw.replace(",", " ").split() if isinstance(raw, str) else raw


def _lower(raw: object) -> object:
    return raw.lower() if isinstance(raw, str) else raw


# --- the table ---------------------------------------------------------------------------------

SAME: Final = ""
"""As a class attribute: bears the name of the setting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What the surfaces say about a setting beside its name, type and default.

    help: one sentence. allowed: what may stand there, for errors and help.
    metavar: the flag's placeholder. short: the short flag.
    attribute: the class attribute, SAME, or None for what only the command line has.
    read: raw value to plain value (ValueError refuses). show: value to text that reads the same.
    """

    help: str
    allowed: str
    metavar: str
    short: str | None = None
    attribute: str | None = None
    read: Callable[[object], object] = _same
    show: Callable[[Any], str] = str


_DURATION_ALLOWED = "a duration such as 30, 30s, 500ms or 5m, at most 7 days"

_Duration = Annotated[float, Meta(ge=0, le=LONGEST)]
_PositiveDuration = Annotated[float, Meta(gt=0, le=LONGEST)]
_Id = Annotated[int, Meta(ge=0, le=2**32 - 2)]  # -1 as uid_t means "leave as it is"
_Account = Annotated[str, Meta(min_length=1)] | _Id
_Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:@/+-]{1,64}\Z")]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of one pool: checked when made, never changed afterwards.

    Made by ``resolve`` (command line) or ``from_attributes`` (library); made by hand it is
    checked just the same and raises SettingsError. Durations are seconds.
    """

    workers: Annotated[
        Annotated[int, Meta(ge=0)],
        About(
            help="How many workers to keep; 0 serves in the master, for debuggers.",
            allowed=f"a number from 0 to max_children, or {AUTO} for one per usable CPU",
            metavar="N",
            short="-w",
            attribute=SAME,
        ),
    ] = msgspec.field(default_factory=lambda: Automatic(usable_cpus().count))
    max_children: Annotated[
        Annotated[int, Meta(ge=1, le=MOST_CHILDREN)],
        About(
            help="The most workers that may ever live at the same time.",
            allowed=f"a number from 1 to {MOST_CHILDREN}",
            metavar="N",
            attribute=SAME,
        ),
    ] = 40
    boot_timeout: Annotated[
        _PositiveDuration,
        About(
            help="How long a worker may take from its fork until it is ready.",
            allowed=f"{_DURATION_ALLOWED}, more than 0",
            metavar="DURATION",
            attribute=SAME,
            read=_seconds,
            show=_show_seconds,
        ),
    ] = 60.0
    graceful_timeout: Annotated[
        _Duration,
        About(
            help="How long a retiring worker may go on with its request before it is killed.",
            allowed=_DURATION_ALLOWED,
            metavar="DURATION",
            attribute=SAME,
            read=_seconds,
            show=_show_seconds,
        ),
    ] = 25.0
    drain_delay: Annotated[
        _Duration,
        About(
            help="How long to go on accepting after TERM, while load balancers take notice.",
            allowed=_DURATION_ALLOWED,
            metavar="DURATION",
            attribute=SAME,
            read=_seconds,
            show=_show_seconds,
        ),
    ] = 0.0
    user: Annotated[
        _Account | None,
        About(
            help="The user that workers become; the master stays what it is.",
            allowed="the name of a user of this machine, or a numeric uid",
            metavar="USER",
            short="-u",
            attribute="run_as_user",
            read=_account(pwd.getpwnam),
        ),
    ] = None
    group: Annotated[
        _Account | None,
        About(
            help="The group that workers become; without it the main group of the user.",
            allowed="the name of a group of this machine, or a numeric gid",
            metavar="GROUP",
            short="-g",
            attribute="run_as_group",
            read=_account(grp.getgrnam),
        ),
    ] = None
    umask: Annotated[
        Annotated[int, Meta(ge=0, le=0o777)] | None,
        About(
            help="The file mode mask of master and workers, in octal.",
            allowed="an octal mask from 000 to 777, as text such as 027",
            metavar="MASK",
            short="-m",
            attribute=SAME,
            read=_octal,
            show=_show_octal,
        ),
    ] = None
    name: Annotated[
        _Name | None,
        About(
            help="The name of the pool in process titles.",
            allowed="1 to 64 letters, digits or any of _ . : @ / + -",
            metavar="NAME",
            short="-n",
            attribute="pool_name",
        ),
    ] = None
    bind: Annotated[
        Annotated[tuple[Annotated[str, Meta(min_length=1)], ...], Meta(min_length=1)],
        About(
            help="An address to listen on; may be given several times.",
            allowed="one or several addresses such as 127.0.0.1:8000, [::]:8000, "
            "udp://127.0.0.1:8000, unix:/path, unixgram:/path or fd://3",
            metavar="ADDRESS",
            short="-b",
            read=_list,
            show=" ".join,
        ),
    ] = ("127.0.0.1:8000",)
    backlog: Annotated[
        Annotated[int, Meta(ge=1, le=65_535)] | None,
        About(
            help="How many connections may wait to be accepted; "
            "without it the server class decides (1024 in prefork's own).",
            allowed="a number from 1 to 65535",
            metavar="N",
        ),
    ] = None
    log_level: Annotated[
        Literal["debug", "info", "warning", "error", "critical"],
        About(
            help="The least severe events that are logged.",
            allowed="one of debug, info, warning, error, critical",
            metavar="LEVEL",
            read=_lower,
        ),
    ] = "info"
    log_format: Annotated[
        Literal["text", "json"],
        About(
            help="Log lines for people (text) or for machines (json).",
            allowed="one of text, json",
            metavar="FORMAT",
            read=_lower,
        ),
    ] = "text"
    pidfile: Annotated[
        Annotated[str, Meta(pattern=r"^[^\x00]+\Z")] | None,
        About(
            help="A file that holds the pid of the master, locked while it lives.",
            allowed="the path of a file in a directory that exists",
            metavar="PATH",
            short="-p",
        ),
    ] = None

    def __post_init__(self) -> None:
        """Check a Settings made by hand as strictly as one that was resolved."""
        if isinstance(self.workers, Automatic):
            bounded = min(int(self.workers), self.max_children)
            msgspec.structs.force_setattr(self, "workers", bounded)
        for row in ROWS.values():
            value = row.converted(getattr(self, row.key), f"Settings({row.key}=…)")
            msgspec.structs.force_setattr(self, row.key, value)
        _refuse_more_workers_than_children(
            self.workers, self.max_children, "Settings(workers=…)", "Settings(max_children=…)"
        )


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: a setting with everything that its surfaces need."""

    key: str
    type: Any
    default: object
    """The raw default: what a user would write to get it, None for "off"."""
    about: About

    @property
    def flag(self) -> str:
        """The long flag, such as ``--max-children``."""
        return "--" + self.key.replace("_", "-")

    @property
    def variable(self) -> str:
        """The environment variable, such as ``PREFORK_MAX_CHILDREN``."""
        return "PREFORK_" + self.key.upper()

    @property
    def attribute(self) -> str | None:
        """The class attribute, None for settings that only the command line has."""
        return self.key if self.about.attribute == SAME else self.about.attribute

    def converted(self, raw: object, source: str, *, text: bool = False) -> Any:
        """Turn a raw value into the setting's value, or raise SettingsError.

        text: the value comes from where everything is text (flags, environment), so that
        ``"4"`` is a number; in a file or an attribute it is a mistake.
        """
        try:
            return msgspec.convert(self.about.read(raw), self.type, strict=not text)
        except ValueError:  # msgspec's ValidationError is one, too
            raise SettingsError(self.key, raw, source, self.about.allowed) from None

    def shown(self, value: object) -> str:
        """Render a value of this setting so that it reads the same again; ``-`` for none."""
        return "-" if value is None else self.about.show(value)


def _rows() -> dict[str, Row]:
    hints = get_type_hints(Settings, include_extras=True)
    rows = {}
    for field in msgspec.structs.fields(Settings):
        about = next(extra for extra in hints[field.name].__metadata__ if isinstance(extra, About))
        # A default that is computed has a word of its own in every surface.
        default = AUTO if field.default is msgspec.NODEFAULT else field.default
        rows[field.name] = Row(field.name, hints[field.name], default, about)
    return rows


ROWS: Final[Mapping[str, Row]] = _rows()
"""The table, by key, in the order of the documentation."""


# --- layers and their resolution -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Layer:
    """Raw values from one place. source: key to the words for where its value came from."""

    values: Mapping[str, object]
    source: Callable[[str], str]
    text: bool = False
    """All values are text, as in flags and environment variables."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """settings: what holds. origins: key to where its value came from (DEFAULT if nobody gave it).

    cpus: what ``auto`` was counted from, None if the number of workers was given.
    """

    settings: Settings
    origins: Mapping[str, str]
    cpus: Usable | None


def merge(layers: Sequence[Layer]) -> tuple[dict[str, Any], dict[str, str]]:
    """Check every value on its own, also those that lose; give the last value and origin per key.

    Raises SettingsError for an unknown key and for a value that cannot be. The command line
    calls it before it loads the target, whose attributes may still change what holds.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        for key, raw in layer.values.items():
            values[key] = _checked(key, raw, layer)
            origins[key] = layer.source(key)
    return values, origins


def resolve(layers: Sequence[Layer], *, cpus: Callable[[], Usable] = usable_cpus) -> Resolved:
    """Make settings of layers, the last one that gives a value wins.

    Raises SettingsError as ``merge`` does, and for more workers than max_children.
    ``auto`` workers become one per usable CPU, at most max_children.
    """
    values, origins = merge(layers)
    counted = cpus() if values.get("workers", AUTO) == AUTO else None
    if counted is not None:
        values["workers"] = Automatic(counted.count)
    else:
        _refuse_more_workers_than_children(
            values["workers"],
            values.get("max_children", ROWS["max_children"].default),
            origins["workers"],
            origins.get("max_children", DEFAULT),
        )
    return Resolved(Settings(**values), dict.fromkeys(ROWS, DEFAULT) | origins, counted)


def attributes_layer(server: object) -> Layer:
    """Read the settings that a server class or instance gives as attributes.

    Values that prefork's own classes bear are defaults, not somebody's choice, and are left out.
    """
    owner = server if isinstance(server, type) else type(server)
    values: dict[str, object] = {}
    for row in ROWS.values():
        if row.attribute is None:
            continue
        value = getattr(server, row.attribute, row.default)
        if value != row.default:
            values[row.key] = value
    return Layer(values, lambda key: f"attribute {owner.__name__}.{ROWS[key].attribute}")


def from_attributes(server: object, *, cpus: Callable[[], Usable] = usable_cpus) -> Settings:
    """Give the settings of a server class or instance, read now; raises SettingsError.

    Runs in the master, when ``serve_forever()`` begins: attributes set until then count.
    """
    return resolve([attributes_layer(server)], cpus=cpus).settings


def nearest(word: str, words: Sequence[str], *, cutoff: float = 0.6) -> str | None:
    """Find what somebody who wrote ``word`` probably meant. cutoff: likeness asked for, 0 to 1."""
    return next(iter(difflib.get_close_matches(word, words, n=1, cutoff=cutoff)), None)


def _checked(key: str, raw: object, layer: Layer) -> Any:
    row = ROWS.get(key)
    if row is None:
        raise SettingsError(key, raw, layer.source(key), _no_such_setting(key))
    if key == "workers" and raw == AUTO:
        return AUTO
    return row.converted(raw, layer.source(key), text=layer.text)


def _no_such_setting(key: str) -> str:
    guess = nearest(key.replace("-", "_").lower(), list(ROWS))
    if guess is not None:
        return f"there is no such setting; did you mean {guess}?"
    return f"there is no such setting; the settings are {', '.join(ROWS)}"


def _refuse_more_workers_than_children(
    workers: int, most: int, source: str, source_of_most: str
) -> None:
    if workers > most:
        allowed = f"at most max_children = {most} (from {source_of_most}); raise that or lower this"
        raise SettingsError("workers", workers, source, allowed)


# --- documentation -------------------------------------------------------------------------------


@functools.cache
def docs_table() -> str:
    """Render the Markdown table of all settings, as README and docs show it."""
    head = ("setting (TOML)", "flag", "environment", "class attribute", "default", "meaning")
    lines = [_cells(head), _cells(["---"] * len(head))]
    lines += [_cells(_documented(row)) for row in ROWS.values()]
    return "\n".join(lines) + "\n"


def _documented(row: Row) -> list[str]:
    short = f"`{row.about.short}`, " if row.about.short else ""
    default = row.shown(row.default)
    return [
        f"`{row.key}`",
        f"{short}`{row.flag} {row.about.metavar}`",
        f"`{row.variable}`",
        f"`{row.attribute}`" if row.attribute else "-",
        "-" if row.default is None else f"`{default}`",
        row.about.help,
    ]


def _cells(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
