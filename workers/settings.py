"""Every setting, once: the fields of ``Settings`` are the table that all surfaces are made from.

One field gives the TOML key, the flag, the environment variable, the class attribute, the
default, the help sentence and what is allowed. Raw values arrive in layers (defaults, class
attributes, file, environment, flags); ``resolve`` lets the last layer win, refuses whatever is
wrong by naming key, value, source and what is allowed, and remembers where each value came from.
"""

import difflib
import grp
import pwd
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from prefork.workers.errors import SettingsError
from prefork.workers.machine import Usable, usable_cpus
from prefork.workers.units import (
    account,
    lower,
    octal,
    ratio,
    same,
    seconds,
    shown_octal,
    shown_ratio,
    shown_seconds,
    shown_size,
    size,
    words,
)

# No annotations as text (from __future__ …): here they are the data of the table, and to evaluate
# them would take some ms of each start.

AUTO: Final = "auto"
DEFAULT: Final = "default"
"""The origin of a value that nobody gave."""

MOST_CHILDREN: Final = 4096
LONGEST: Final = 7 * 86_400.0
"""Seconds; a timeout of more than a week is a mistyped unit, and every wait stays within epoll's range."""


class Automatic(int):
    """A number of workers that nobody asked for, so that ``max_children`` may lower it silently."""

    __slots__ = ()


# --- the table ---------------------------------------------------------------------------------

SAME: Final = ""
"""As a class attribute: bears the name of the setting."""


class About(msgspec.Struct, frozen=True, kw_only=True):
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
    read: Callable[[object], object] = same
    show: Callable[[Any], str] = str


_DURATION_ALLOWED = "a duration such as 30, 30s, 500ms or 5m, at most 7 days"


def _duration(text: str, *, positive: bool = False, short: str | None = None) -> About:
    """Return what is to be said of a duration that a class attribute of its name may give."""
    allowed = f"{_DURATION_ALLOWED}, more than 0" if positive else _DURATION_ALLOWED
    return About(
        help=text,
        allowed=allowed,
        metavar="DURATION",
        short=short,
        attribute=SAME,
        read=seconds,
        show=shown_seconds,
    )


_Duration = Annotated[float, Meta(ge=0, le=LONGEST)]
_PositiveDuration = Annotated[float, Meta(gt=0, le=LONGEST)]
_Count = Annotated[int, Meta(ge=1, le=2**62)]
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
    min_spare: Annotated[
        Annotated[int, Meta(ge=1, le=MOST_CHILDREN)] | None,
        About(
            help="Keep at least so many idle workers, by growing between workers and max_children.",
            allowed="a number from 1 to max_children",
            metavar="N",
            attribute=SAME,
        ),
    ] = None
    max_spare: Annotated[
        Annotated[int, Meta(ge=1, le=MOST_CHILDREN)] | None,
        About(
            help="Keep at most so many idle workers; without it, twice min_spare.",
            allowed="a number from min_spare to max_children, together with min_spare",
            metavar="N",
            attribute=SAME,
        ),
    ] = None
    max_requests: Annotated[
        _Count | None,
        About(
            help="Recycle a worker after so many requests.",
            allowed="a number from 1",
            metavar="N",
            attribute=SAME,
        ),
    ] = None
    max_lifetime: Annotated[
        _PositiveDuration | None,
        _duration("Recycle a worker after this long.", positive=True),
    ] = None
    max_memory: Annotated[
        Annotated[int, Meta(ge=2**20, le=2**50)] | None,
        About(
            help="Recycle a worker whose private memory (USS) is more than this.",
            allowed="a size such as 256M or 2G, at least 1M",
            metavar="SIZE",
            attribute=SAME,
            read=size,
            show=shown_size,
        ),
    ] = None
    jitter: Annotated[
        Annotated[float, Meta(ge=0, le=1)],
        About(
            help="How much earlier than at its limit a worker may be recycled, so that not all are at once.",
            allowed="a ratio from 0% to 100%, such as 10% or 0.1",
            metavar="RATIO",
            attribute=SAME,
            read=ratio,
            show=shown_ratio,
        ),
    ] = 0.1
    request_timeout: Annotated[
        _PositiveDuration | None,
        _duration(
            "How long one request may take: then its worker's stacks are logged and it is killed.",
            positive=True,
            short="-t",
        ),
    ] = None
    slow_request: Annotated[
        _PositiveDuration | None,
        _duration(
            "Log the stacks of a worker whose request takes longer, once; it goes on.",
            positive=True,
        ),
    ] = None
    client_timeout: Annotated[
        _Duration | None,
        _duration(
            "How long a handler waits for its client to send or to take something, 0 for ever; "
            "the command line's own default is 30s."
        ),
    ] = None
    defer_accept: Annotated[
        Annotated[float, Meta(gt=0, le=3600)] | None,
        About(
            help="Leave a TCP connection to the kernel until its client has sent something, at most about "
            "this long; for protocols in which the client talks first.",
            allowed="a duration of more than 0, at most 1h",
            metavar="DURATION",
            attribute=SAME,
            read=seconds,
            show=shown_seconds,
        ),
    ] = None
    crash_loop: Annotated[
        Literal["retry", "exit"],
        About(
            help="When new workers die again and again before they are ready: go on trying, or exit with code 5.",
            allowed="one of retry, exit",
            metavar="WORD",
            attribute=SAME,
            read=lower,
        ),
    ] = "retry"
    fork_check: Annotated[
        Literal["warn", "error", "off"],
        About(
            help="What to do when the master has other threads, which its workers would lack: "
            "warn once, refuse, or nothing.",
            allowed="one of warn, error, off",
            metavar="WORD",
            attribute=SAME,
            read=lower,
        ),
    ] = "warn"
    boot_timeout: Annotated[
        _PositiveDuration,
        _duration("How long a worker may take from its fork until it is ready.", positive=True),
    ] = 60.0
    graceful_timeout: Annotated[
        _Duration,
        _duration("How long a retiring worker may go on with its request before it is killed."),
    ] = 25.0
    drain_delay: Annotated[
        _Duration,
        _duration("How long to go on accepting after TERM, while load balancers take notice."),
    ] = 0.0
    metrics: Annotated[
        Annotated[str, Meta(min_length=1)] | None,
        About(
            help="Where the metrics process listens: /metrics, /livez, /readyz, /status and a status page.",
            allowed="an address such as 127.0.0.1:9100 or unix:/path",
            metavar="ADDRESS",
            attribute="metrics_address",
        ),
    ] = None
    metrics_dir: Annotated[
        Annotated[str, Meta(pattern=r"^[^\x00]+\Z")] | None,
        About(
            help="A directory for what handlers count with prometheus_client; emptied at the start; "
            "PROMETHEUS_MULTIPROC_DIR names it, too.",
            allowed="the path of a directory that exists and can be written to",
            metavar="PATH",
            attribute=SAME,
        ),
    ] = None
    access_log: Annotated[
        Literal["off", "text", "json"],
        About(
            help="Log a line for each request, for people (text) or for machines (json).",
            allowed="one of off, text, json",
            metavar="FORMAT",
            attribute=SAME,
            read=lower,
        ),
    ] = "off"
    user: Annotated[
        _Account | None,
        About(
            help="The user that workers become; the master stays what it is.",
            allowed="the name of a user of this machine, or a numeric uid",
            metavar="USER",
            short="-u",
            attribute="run_as_user",
            read=account(pwd.getpwnam),
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
            read=account(grp.getgrnam),
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
            read=octal,
            show=shown_octal,
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
            "udp://127.0.0.1:8000, unix:/path, unixgram:/path, fd://3 or systemd:NAME",
            metavar="ADDRESS",
            short="-b",
            read=words,
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
            read=lower,
        ),
    ] = "info"
    log_format: Annotated[
        Literal["text", "json"],
        About(
            help="Log lines for people (text) or for machines (json).",
            allowed="one of text, json",
            metavar="FORMAT",
            read=lower,
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
        _refuse_contradictions(
            self.workers,
            self.max_children,
            self.min_spare,
            self.max_spare,
            lambda key: f"Settings({key}=…)",
        )

    @property
    def most_spare(self) -> int:
        """The most idle workers to keep; 0 where the pool does not follow load."""
        if self.min_spare is None:
            return 0
        return 2 * self.min_spare if self.max_spare is None else self.max_spare


class Row(msgspec.Struct, frozen=True):
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
    rows = {}
    for field in msgspec.structs.fields(Settings):
        about = next(extra for extra in field.type.__metadata__ if isinstance(extra, About))
        # A default that is computed has a word of its own in every surface.
        default = AUTO if field.default is msgspec.NODEFAULT else field.default
        rows[field.name] = Row(field.name, field.type, default, about)
    return rows


ROWS: Final[Mapping[str, Row]] = _rows()
"""The table, by key, in the order of the documentation."""


# --- layers and their resolution -----------------------------------------------------------------


class Layer(msgspec.Struct, frozen=True):
    """Raw values from one place. source: key to the words for where its value came from."""

    values: Mapping[str, object]
    source: Callable[[str], str]
    text: bool = False
    """All values are text, as in flags and environment variables."""


class Resolved(msgspec.Struct, frozen=True):
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
    most = values.get("max_children", ROWS["max_children"].default)
    _refuse_contradictions(
        values["workers"],
        most,
        values.get("min_spare"),
        values.get("max_spare"),
        lambda key: origins.get(key, DEFAULT),
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


def _refuse_contradictions(
    workers: int,
    most: int,
    min_spare: int | None,
    max_spare: int | None,
    source: Callable[[str], str],
) -> None:
    """Refuse values that are good alone and impossible together."""
    bound = f"max_children = {most} (from {source('max_children')})"
    if workers > most and not isinstance(workers, Automatic):
        allowed = f"at most {bound}; raise that or lower this"
        raise SettingsError("workers", workers, source("workers"), allowed)
    if min_spare is not None and min_spare > most:
        allowed = f"at most {bound}; raise that or lower this"
        raise SettingsError("min_spare", min_spare, source("min_spare"), allowed)
    if max_spare is not None and min_spare is None:
        allowed = "it needs min_spare, which says from when on the pool grows"
        raise SettingsError("max_spare", max_spare, source("max_spare"), allowed)
    if max_spare is not None and min_spare is not None and max_spare < min_spare:
        allowed = f"at least min_spare = {min_spare} (from {source('min_spare')})"
        raise SettingsError("max_spare", max_spare, source("max_spare"), allowed)
    if min_spare is not None and workers == 0:
        allowed = "a pool that follows load needs at least one worker; leave min_spare out"
        raise SettingsError("workers", workers, source("workers"), allowed)
