"""Every setting, once: the fields of ``Settings`` are the table from which every surface is made.

One field gives the TOML key, the flag, the environment variable, the class attribute, the default,
the sentence of the help, and the values that are allowed. Nothing else in the project lists the
settings: the command line, the documents and the layers (workers/layers.py) go through ``ROWS``.
"""

import contextlib
import grp
import pwd
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Union, get_args, get_origin

import msgspec
from msgspec import Meta

from prefork.workers.errors import SettingsError
from prefork.workers.machine import usable_cpus
from prefork.workers.process_limits import (
    HIGHEST_ADJ,
    LimitName,
    ProcessLimits,
    read_limits,
    shown_limits,
)
from prefork.workers.text import nearest
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
    shown_switch,
    size,
    switch,
    words,
)

# No annotations as text (from __future__ …): here they are the data of the table, and evaluating
# them from text would take some milliseconds of each start.

USUAL_CHILDREN: Final = 40
"""``max_children`` by default. Where more workers are asked for, it is ``room_for()`` them."""

AUTO: Final = "auto"
"""The word for as many workers as there are usable CPUs, at most ``max_children``."""

MOST_CHILDREN: Final = 4096

LONGEST: Final = 7 * 86_400.0
"""Seconds of the longest duration. A timeout of more than a week is a mistyped unit, and every wait
stays within the range of ``epoll_wait()``.
"""

SAME: Final = ""
"""As the name of a class attribute: the name of the setting."""


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What the surfaces say about a setting, beside its name, type and default.

    help: one sentence. allowed: the values that may be given, in words, for errors and help.
    metavar: the flag's placeholder. short: the short flag. attribute: the class attribute; None for
    a setting that only the command line has. read: turns a raw value into a plain one; ValueError
    refuses it. show: turns a value into text which reads as the same value.
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
    """Describe a duration that can also be given as a class attribute of the same name."""
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


def _names(text: str, allowed: str, metavar: str) -> About:
    """Describe a list of words that can also be given as a class attribute of the same name."""
    return About(
        help=text, allowed=allowed, metavar=metavar, attribute=SAME, read=words, show=" ".join
    )


_Duration = Annotated[float, Meta(ge=0, le=LONGEST)]
_PositiveDuration = Annotated[float, Meta(gt=0, le=LONGEST)]
_Count = Annotated[int, Meta(ge=1, le=2**62)]
_Id = Annotated[int, Meta(ge=0, le=2**32 - 2)]  # -1 as uid_t means "leave as it is"
_Account = Annotated[str, Meta(min_length=1)] | _Id
_Names = Annotated[tuple[Annotated[str, Meta(min_length=1)], ...], Meta(min_length=1)]
_Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:@/+-]{1,64}\Z")]


def room_for(workers: int, *, follows_load: bool) -> int:
    """Return ``max_children`` where nobody has given it: room for the workers that were asked for.

    follows_load: whether ``min_spare`` is set, so that the pool needs room above its floor as well.
    """
    return min(MOST_CHILDREN, max(USUAL_CHILDREN, 2 * workers if follows_load else workers))


class _SettingsMeta(msgspec.StructMeta):
    """Makes ``Settings(…)`` answer for a wrong name as it does for a wrong value."""

    if not TYPE_CHECKING:  # checkers see the fields, as of every Struct

        def __call__(self, *positional: object, **values: object) -> Any:
            """Make settings; SettingsError for a name that is no setting."""
            for key in values.keys() - ROWS.keys():
                raise SettingsError(key, values[key], f"Settings({key}=…)", no_such_setting(key))
            workers = values.get("workers", AUTO)
            automatic = {"workers"} if workers == AUTO else set()
            if workers == AUTO:
                workers = usable_cpus().count
            if "max_children" not in values:
                automatic.add("max_children")
            if isinstance(workers, int):  # what it must be is checked later
                spare = values.get("min_spare")
                values.setdefault("max_children", room_for(workers, follows_load=spare is not None))
            made = super().__call__(*positional, **values)
            msgspec.structs.force_setattr(made, "automatic", frozenset(automatic))
            return made

    @property
    def __signature__(self) -> Any:
        """The names and defaults, for ``inspect``, ``help()`` and editors."""
        import inspect  # noqa: PLC0415 - it takes milliseconds, and is rarely asked for

        kind = inspect.Parameter.KEYWORD_ONLY
        return inspect.Signature(
            [inspect.Parameter(row.key, kind, default=row.default) for row in ROWS.values()]
        )


class Settings(
    msgspec.Struct, metaclass=_SettingsMeta, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """The settings of one pool: checked when they are made, never changed afterwards.

    A program can make them for ``prefork.serve()``, in place of the class attributes of its first
    server. The values are read and checked as those of class attributes are. An attribute of the object
    that is a duration is in seconds, and one that is a size is in bytes. SettingsError: a value is not
    allowed.
    """

    workers: Annotated[
        Annotated[int, Meta(ge=0)],
        About(
            help="How many workers to keep; 0 serves in the master itself, for debuggers.",
            allowed=f"a number from 0 to max_children, or {AUTO} for one per usable CPU",
            metavar="N",
            short="-w",
            attribute=SAME,
        ),
    ] = AUTO  # type: ignore[assignment]  # replaced when the settings are made
    max_children: Annotated[
        Annotated[int, Meta(ge=1, le=MOST_CHILDREN)],
        About(
            help="The largest number of workers that may exist at any moment; the default rises with workers.",
            allowed=f"a number from 1 to {MOST_CHILDREN}",
            metavar="N",
            attribute=SAME,
        ),
    ] = USUAL_CHILDREN
    min_spare: Annotated[
        Annotated[int, Meta(ge=1, le=MOST_CHILDREN)] | None,
        About(
            help="Keep at least this many workers idle, adding workers up to max_children when load rises.",
            allowed="a number from 1 to max_children",
            metavar="N",
            attribute=SAME,
        ),
    ] = None
    max_spare: Annotated[
        Annotated[int, Meta(ge=1, le=MOST_CHILDREN)] | None,
        About(
            help="Keep at most this many workers idle; the default is twice min_spare.",
            allowed="a number from min_spare to max_children, together with min_spare",
            metavar="N",
            attribute=SAME,
        ),
    ] = None
    max_requests: Annotated[
        _Count | None,
        About(
            help="Recycle a worker after this many requests.",
            allowed="a number from 1",
            metavar="N",
            attribute=SAME,
        ),
    ] = None
    max_lifetime: Annotated[
        _PositiveDuration | None,
        _duration("Recycle a worker that has lived this long.", positive=True),
    ] = None
    max_memory: Annotated[
        Annotated[int, Meta(ge=2**20, le=2**50)] | None,
        About(
            help="Recycle a worker whose private memory (USS) exceeds this.",
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
            help="Recycle each worker at a random point up to this far before its limit, "
            "so that they are not all replaced at once.",
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
            "How long one request may take; after that its worker's stacks are logged and the worker is killed.",
            positive=True,
            short="-t",
        ),
    ] = None
    soft_timeout: Annotated[
        _PositiveDuration | None,
        _duration(
            "How long one request may take before RequestTimeout is raised in its handler; the worker goes on.",
            positive=True,
        ),
    ] = None
    cpu_timeout: Annotated[
        _PositiveDuration | None,
        _duration(
            "How much CPU time one request may use before CPUTimeExceeded is raised in its handler.",
            positive=True,
        ),
    ] = None
    check_client: Annotated[
        Literal["off", "reset", "closed"],
        About(
            help="End the request of a client that has gone: never, when its connection was reset, or also "
            "when it was closed; a client that has closed may only have half-closed.",
            allowed="one of off, reset, closed",
            metavar="WORD",
            attribute=SAME,
            read=lower,
        ),
    ] = "off"
    max_queue_wait: Annotated[
        _PositiveDuration | None,
        _duration(
            "Refuse a request that has waited longer than this in the kernel's queue, to serve one whose client "
            "still waits; not known for Unix streams.",
            positive=True,
        ),
    ] = None
    max_per_client: Annotated[
        Annotated[int, Meta(ge=1, le=MOST_CHILDREN)] | None,
        About(
            help="How many workers one client address, or one /64 network of IPv6, may hold at a time.",
            allowed=f"a number from 1 to {MOST_CHILDREN}",
            metavar="N",
            attribute=SAME,
        ),
    ] = None
    slow_request: Annotated[
        _PositiveDuration | None,
        _duration(
            "Log the stacks of a worker, once, when its request takes longer than this; the request goes on.",
            positive=True,
        ),
    ] = None
    client_timeout: Annotated[
        _Duration | None,
        _duration(
            "How long a handler waits for its client to send or to accept data, 0 for no limit; "
            "the command line's own default is 30s."
        ),
    ] = None
    edge_timeout: Annotated[
        Annotated[float, Meta(gt=0, le=3600)],
        About(
            help="How long a client has for all that comes before the handler: PROXY header, TLS, authentication.",
            allowed="a duration of more than 0, at most 1h",
            metavar="DURATION",
            attribute=SAME,
            read=seconds,
            show=shown_seconds,
        ),
    ] = 5.0
    proxy_from: Annotated[
        _Names | None,
        _names(
            "A proxy, or a network of proxies, that must send a PROXY header; from all others a header is plain data.",
            "networks or addresses such as 10.0.0.0/8 or fd00::1, or unix for all peers of Unix sockets",
            "NET",
        ),
    ] = None
    allow: Annotated[
        _Names | None,
        _names(
            "Who may connect: a network, unix, unix:uid=N or unix:gid=N; everybody else is refused.",
            "networks or addresses such as 10.0.0.0/8 or fd00::1, unix, unix:uid=1000 or unix:gid=1000",
            "NET",
        ),
    ] = None
    deny: Annotated[
        _Names | None,
        _names(
            "Who may not connect, also where allow says so: a network, unix, unix:uid=N or unix:gid=N.",
            "networks or addresses such as 10.0.0.0/8 or fd00::1, unix, unix:uid=1000 or unix:gid=1000",
            "NET",
        ),
    ] = None
    max_auth_failures: Annotated[
        _Count | None,
        About(
            help="How often a client may fail to authenticate within a minute; then it is refused at once.",
            allowed="a number from 1",
            metavar="N",
            attribute=SAME,
        ),
    ] = 10
    tls_certificate: Annotated[
        _Names | None,
        _names(
            "A PEM file with a certificate and its chain; of several, the name that a client asks for decides.",
            "paths of files that exist",
            "PATH",
        ),
    ] = None
    tls_key: Annotated[
        _Names | None,
        _names(
            "A PEM file with the key of the certificate, where the certificate's own file does not have it.",
            "paths of files that exist, one for each certificate",
            "PATH",
        ),
    ] = None
    tls_key_password_file: Annotated[
        Annotated[str, Meta(pattern=r"^[^\x00]+\Z")] | None,
        About(
            help="A file with the password of the keys.",
            allowed="the path of a file that exists",
            metavar="PATH",
            attribute=SAME,
        ),
    ] = None
    tls_client_ca: Annotated[
        Annotated[str, Meta(pattern=r"^[^\x00]+\Z")] | None,
        About(
            help="A PEM file with the authorities one of which must have signed the certificate of each client.",
            allowed="the path of a file that exists",
            metavar="PATH",
            attribute=SAME,
        ),
    ] = None
    tls_alpn: Annotated[
        _Names | None,
        _names(
            "A protocol to offer by ALPN, best first.",
            "names of protocols such as http/1.1",
            "NAME",
        ),
    ] = None
    tls_watch: Annotated[
        bool,
        About(
            help="Reload when a file of a certificate, of a key or of the authorities has changed.",
            allowed="on or off",
            metavar="WORD",
            attribute=SAME,
            read=switch,
            show=shown_switch,
        ),
    ] = False
    defer_accept: Annotated[
        Annotated[float, Meta(gt=0, le=3600)] | None,
        About(
            help="Leave a TCP connection in the kernel until its client has sent data, for about this long "
            "at most; for protocols in which the client speaks first.",
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
            help="What to do when new workers die again and again before they are ready: "
            "keep trying, or exit with code 5.",
            allowed="one of retry, exit",
            metavar="WORD",
            attribute=SAME,
            read=lower,
        ),
    ] = "retry"
    restore_process: Annotated[
        bool,
        About(
            help="Put timers, signal mask, working directory and umask back after each request, which costs 3 µs.",
            allowed="on or off",
            metavar="WORD",
            attribute=SAME,
            read=switch,
            show=shown_switch,
        ),
    ] = False
    fork_check: Annotated[
        Literal["warn", "error", "off"],
        About(
            help="What to do when the master has other threads, which its workers would not have: "
            "warn once, refuse to fork, or nothing.",
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
        _duration("How long a retiring worker may take to finish its request before it is killed."),
    ] = 25.0
    drain_delay: Annotated[
        _Duration,
        _duration("How long to keep accepting after TERM, so that load balancers notice first."),
    ] = 0.0
    max_parked: Annotated[
        Annotated[int, Meta(ge=1, le=2**20)] | None,
        About(
            help="How many idle connections may be parked; the default is 10000, or less where the limit of "
            "descriptors is lower.",
            allowed="a number from 1 to what the hard limit of descriptors leaves",
            metavar="N",
            attribute=SAME,
        ),
    ] = None
    park_timeout: Annotated[
        _Duration,
        _duration("Close a parked connection after this much silence, 0 for no limit."),
    ] = 60.0
    park_new: Annotated[
        bool,
        About(
            help="Park a new connection until its client speaks, for protocols in which the client speaks first.",
            allowed="on or off",
            metavar="WORD",
            attribute=SAME,
            read=switch,
            show=shown_switch,
        ),
    ] = False
    linger: Annotated[
        Annotated[float, Meta(ge=0, le=1)],
        About(
            help="How long a worker itself waits for the next request of a connection before it parks the "
            "connection; only while nothing else waits.",
            allowed="a duration of at most 1s, such as 2ms",
            metavar="DURATION",
            attribute=SAME,
            read=seconds,
            show=shown_seconds,
        ),
    ] = 0.001
    limit_head: Annotated[
        Annotated[int, Meta(ge=1024, le=2**20)],
        About(
            help="How many bytes the head of a request may have, for WSGI applications.",
            allowed="a size from 1K to 1M, such as 32K",
            metavar="SIZE",
            read=size,
            show=shown_size,
        ),
    ] = 32 * 1024
    limit_fields: Annotated[
        Annotated[int, Meta(ge=1, le=10_000)],
        About(
            help="How many fields the head of a request may have, for WSGI applications.",
            allowed="a number from 1 to 10000",
            metavar="N",
        ),
    ] = 100
    limit_body: Annotated[
        Annotated[int, Meta(ge=0, le=2**50)] | None,
        About(
            help="How many bytes the body of a request may have, for WSGI applications; by default any number.",
            allowed="a size such as 10M",
            metavar="SIZE",
            read=size,
            show=shown_size,
        ),
    ] = None
    forwarded_from: Annotated[
        _Names | None,
        About(
            help="A proxy, or a network of proxies, that is believed when it says in the head for whom a request is, for "
            "WSGI applications; by default none.",
            allowed="networks or addresses such as 10.0.0.0/8 or fd00::1, or unix for all peers of Unix sockets",
            metavar="NET",
            read=words,
            show=" ".join,
        ),
    ] = None
    forwarded_fields: Annotated[
        Literal["x-forwarded", "forwarded"],
        About(
            help="The fields in which these proxies say so: X-Forwarded-For and X-Forwarded-Proto, or Forwarded.",
            allowed="x-forwarded or forwarded",
            metavar="KIND",
            read=lower,
        ),
    ] = "x-forwarded"
    metrics: Annotated[
        Annotated[str, Meta(min_length=1)] | None,
        About(
            help="Where the metrics process listens: /metrics, /livez, /readyz, /status and a status page.",
            allowed="an address such as 127.0.0.1:9100 or unix:/path",
            metavar="ADDRESS",
            attribute="metrics_address",
        ),
    ] = None
    agent: Annotated[
        Annotated[str, Meta(min_length=1)] | None,
        About(
            help="Where the metrics process answers HAProxy's agent check, which tells HAProxy how much this pool can take.",
            allowed="an address such as 127.0.0.1:9101 or unix:/path",
            metavar="ADDRESS",
            attribute="agent_address",
        ),
    ] = None
    agent_mode: Annotated[
        Literal["maxconn", "weight"],
        About(
            help="What the agent reports: how many workers take requests, so that HAProxy queues the rest "
            "(maxconn), or the share of them that is idle (weight).",
            allowed="one of maxconn, weight",
            metavar="WORD",
            attribute=SAME,
            read=lower,
        ),
    ] = "maxconn"
    metrics_dir: Annotated[
        Annotated[str, Meta(pattern=r"^[^\x00]+\Z")] | None,
        About(
            help="A directory for the metrics that handlers keep with prometheus_client, emptied at the start; "
            "PROMETHEUS_MULTIPROC_DIR names it, too.",
            allowed="the path of a directory that exists and can be written to",
            metavar="PATH",
            attribute=SAME,
        ),
    ] = None
    access_log: Annotated[
        Literal["off", "text", "json", "common", "combined", "timed"],
        About(
            help="Log a line for each request: for people (text), for machines (json), or, of WSGI applications, as "
            "other web servers do (common, combined, or timed: combined with duration and queue wait).",
            allowed="one of off, text, json, common, combined, timed",
            metavar="FORMAT",
            attribute=SAME,
            read=lower,
        ),
    ] = "off"
    user: Annotated[
        _Account | None,
        About(
            help="The user that the workers run as; the master keeps its own.",
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
            help="The group that the workers run as; the default is the main group of the user.",
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
            help="The file mode mask of the master and its workers, in octal.",
            allowed="an octal mask from 000 to 777, as text such as 027",
            metavar="MASK",
            short="-m",
            attribute=SAME,
            read=octal,
            show=shown_octal,
        ),
    ] = None
    limits: Annotated[
        dict[LimitName, Annotated[int, Meta(ge=-1, le=2**62)]] | None,
        About(
            help="Limits of setrlimit() for each worker, soft and hard, such as as=2G nofile=1024 core=0.",
            allowed=f"pairs of {', '.join(get_args(LimitName))} and a number, a size or unlimited, such as "
            '"nofile=1024 as=2G", or a table of them',
            metavar="NAME=VALUE,...",
            attribute=SAME,
            read=read_limits,
            show=shown_limits,
        ),
    ] = None
    nice: Annotated[
        Annotated[int, Meta(ge=-20, le=19)] | None,
        About(
            help="The niceness of the workers; the master keeps its own.",
            allowed="a number from -20 (first to run) to 19",
            metavar="N",
            attribute=SAME,
        ),
    ] = None
    oom_score_adj: Annotated[
        Annotated[int, Meta(ge=-HIGHEST_ADJ, le=HIGHEST_ADJ)] | None,
        About(
            help="The oom_score_adj of the workers, so that the kernel kills a worker before the master "
            "when memory is low.",
            allowed=f"a number from the master's own oom_score_adj to {HIGHEST_ADJ}",
            metavar="N",
            attribute=SAME,
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
            "the default is the server class's own, or 1024 if that is the standard library's 5.",
            allowed="a number from 1 to 65535",
            metavar="N",
        ),
    ] = None
    log_level: Annotated[
        Literal["debug", "info", "warning", "error", "critical"],
        About(
            help="Log events of this severity and above.",
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
    log_config: Annotated[
        Annotated[str, Meta(pattern=r"^[^\x00]+\Z")] | None,
        About(
            help="Configure logging from this file, as logging.config does, instead of log_level and log_format.",
            allowed="the path of a .json or .toml file for dictConfig(), or of any other file for fileConfig()",
            metavar="PATH",
        ),
    ] = None
    pidfile: Annotated[
        Annotated[str, Meta(pattern=r"^[^\x00]+\Z")] | None,
        About(
            help="A file that holds the pid of the master, locked while the master lives.",
            allowed="the path of a file in a directory that exists",
            metavar="PATH",
            short="-p",
        ),
    ] = None

    automatic: frozenset[str] = frozenset()
    """Those of ``workers`` and ``max_children`` that were counted from the CPUs. The field is no setting."""

    if TYPE_CHECKING:
        # What a program may give is more than what the settings have afterwards: "30s" for 30.0.
        # <constructor> - written by make docs
        def __init__(
            self,
            *,
            workers: int | Literal["auto"] = "auto",
            max_children: int = 40,
            min_spare: int | None = None,
            max_spare: int | None = None,
            max_requests: int | None = None,
            max_lifetime: float | str | None = None,
            max_memory: int | str | None = None,
            jitter: float | str = 0.1,
            request_timeout: float | str | None = None,
            soft_timeout: float | str | None = None,
            cpu_timeout: float | str | None = None,
            check_client: Literal["off", "reset", "closed"] = "off",
            max_queue_wait: float | str | None = None,
            max_per_client: int | None = None,
            slow_request: float | str | None = None,
            client_timeout: float | str | None = None,
            edge_timeout: float | str = 5.0,
            proxy_from: tuple[str, ...] | list[str] | str | None = None,
            allow: tuple[str, ...] | list[str] | str | None = None,
            deny: tuple[str, ...] | list[str] | str | None = None,
            max_auth_failures: int = 10,
            tls_certificate: tuple[str, ...] | list[str] | str | None = None,
            tls_key: tuple[str, ...] | list[str] | str | None = None,
            tls_key_password_file: str | None = None,
            tls_client_ca: str | None = None,
            tls_alpn: tuple[str, ...] | list[str] | str | None = None,
            tls_watch: bool | str = False,
            defer_accept: float | str | None = None,
            crash_loop: Literal["retry", "exit"] = "retry",
            restore_process: bool | str = False,
            fork_check: Literal["warn", "error", "off"] = "warn",
            boot_timeout: float | str = 60.0,
            graceful_timeout: float | str = 25.0,
            drain_delay: float | str = 0.0,
            max_parked: int | None = None,
            park_timeout: float | str = 60.0,
            park_new: bool | str = False,
            linger: float | str = 0.001,
            limit_head: int | str = 32768,
            limit_fields: int = 100,
            limit_body: int | str | None = None,
            forwarded_from: tuple[str, ...] | list[str] | str | None = None,
            forwarded_fields: Literal["x-forwarded", "forwarded"] = "x-forwarded",
            metrics: str | None = None,
            agent: str | None = None,
            agent_mode: Literal["maxconn", "weight"] = "maxconn",
            metrics_dir: str | None = None,
            access_log: Literal["off", "text", "json", "common", "combined", "timed"] = "off",
            user: str | int | None = None,
            group: str | int | None = None,
            umask: int | str | None = None,
            limits: dict[str, int | str] | str | None = None,
            nice: int | None = None,
            oom_score_adj: int | None = None,
            name: str | None = None,
            bind: tuple[str, ...] | list[str] | str = ("127.0.0.1:8000",),
            backlog: int | None = None,
            log_level: Literal["debug", "info", "warning", "error", "critical"] = "info",
            log_format: Literal["text", "json"] = "text",
            log_config: str | None = None,
            pidfile: str | None = None,
        ) -> None: ...

        # </constructor>

    def __post_init__(self) -> None:
        """Read and check every value that is not the default."""
        wanted: object = self.workers
        automatic = wanted == AUTO
        for row in ROWS.values():
            raw = getattr(self, row.key)
            if raw is not row.default and not (automatic and row.key == "workers"):
                value = row.converted(raw, f"Settings({row.key}=…)")
                msgspec.structs.force_setattr(self, row.key, value)
        if automatic:
            workers = min(usable_cpus().count, self.max_children)
            msgspec.structs.force_setattr(self, "workers", workers)
        refuse_contradictions(
            self.workers,
            self.max_children,
            self.min_spare,
            self.max_spare,
            lambda key: f"Settings({key}=…)",
        )
        refuse_late_soft_timeout(
            self.soft_timeout, self.request_timeout, lambda key: f"Settings({key}=…)"
        )

    @property
    def process_limits(self) -> ProcessLimits | None:
        """What a worker sets for its process; None if nothing is set."""
        if self.limits is None and self.nice is None and self.oom_score_adj is None:
            return None
        return ProcessLimits(self.limits or {}, self.nice, self.oom_score_adj)

    @property
    def most_spare(self) -> int:
        """The largest number of idle workers to keep; 0 for a pool that does not follow load."""
        if self.min_spare is None:
            return 0
        return 2 * self.min_spare if self.max_spare is None else self.max_spare


class Row(msgspec.Struct, frozen=True):
    """One line of the table: a setting with all that its surfaces need.

    default: the raw default, which is what a user would write to get it; None for "off".
    """

    key: str
    type: Any
    default: object
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
        """The class attribute; None for a setting that only the command line has."""
        return self.key if self.about.attribute == SAME else self.about.attribute

    @property
    def is_list(self) -> bool:
        """Whether the setting is a list, so that its flag can be given several times."""
        return get_origin(_alternatives(self.type)[0]) is tuple

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that the setting can be; () for one that is not chosen from words."""
        kind = _alternatives(self.type)[0]
        if kind is bool:
            return ("on", "off")
        return get_args(kind) if get_origin(kind) is Literal else ()

    @property
    def raw_type(self) -> str:
        """The type of what a program may give, as text of an annotation: ``float | str | None``."""
        if self.key == "workers":
            return f'int | Literal["{AUTO}"]'
        inner, optional = self.type, self.default is None
        names = [_type_name(one) for one in _alternatives(inner)]
        if self.about.read not in (same, lower) and "str" not in names:
            names.append("str")
        return " | ".join([*dict.fromkeys(names), *(["None"] if optional else [])])

    def converted(self, raw: object, source: str, *, text: bool = False) -> Any:
        """Return the value that a raw value stands for; raise SettingsError where there is none.

        source: where the value came from, for the error. text: whether everything there is text, as
        in flags and the environment, so that ``"4"`` is a number. In a file or an attribute it is a
        mistake.
        """
        try:
            return msgspec.convert(self.about.read(raw), self.type, strict=not text)
        except ValueError:  # a ValidationError of msgspec is a ValueError, too
            quotes = "" if text or not self._reads_as_text(raw) else ", without quotes"
            raise SettingsError(self.key, raw, source, self.about.allowed + quotes) from None

    def _reads_as_text(self, raw: object) -> bool:
        """Return whether a text that is refused would be right as a flag: ``"4"`` is no number in a file."""
        if not isinstance(raw, str):
            return False
        with contextlib.suppress(ValueError):
            msgspec.convert(self.about.read(raw), self.type, strict=False)
            return True
        return False

    def shown(self, value: object) -> str:
        """Return a value of this setting as text which reads as the same value; ``-`` for None."""
        return "-" if value is None else self.about.show(value)


def _alternatives(annotated: Any) -> list[Any]:
    """Return the plain types of an annotation, without the limits, and without None."""
    if hasattr(annotated, "__metadata__"):
        return _alternatives(annotated.__origin__)
    if isinstance(annotated, UnionType) or get_origin(annotated) is Union:
        return [one for part in get_args(annotated) for one in _alternatives(part)]
    return [] if annotated is NoneType else [annotated]


def _quoted(word: str) -> str:
    return f'"{word}"'


def _type_name(plain: Any) -> str:
    if get_origin(plain) is Literal:
        return f"Literal[{', '.join(map(_quoted, get_args(plain)))}]"
    if get_origin(plain) is dict:
        return "dict[str, int | str]"
    return "tuple[str, ...] | list[str]" if get_origin(plain) is tuple else str(plain.__name__)


def _rows() -> dict[str, Row]:
    rows = {}
    for field in msgspec.structs.fields(Settings):
        for about in getattr(field.type, "__metadata__", ()):
            if isinstance(about, About):
                rows[field.name] = Row(field.name, field.type, field.default, about)
    return rows


ROWS: Final[Mapping[str, Row]] = _rows()
"""The table, by key, in the order of the documentation."""


Settings.__doc__ = f"{Settings.__doc__}\n    " + "\n    ".join(
    ["The settings:", "", *(f"{row.key}: {row.about.help}" for row in ROWS.values())]
)


def no_such_setting(key: str) -> str:
    """Return the words for a key that no setting has, with the one that was probably meant."""
    guess = nearest(key.replace("-", "_").lower(), list(ROWS))
    if guess is not None:
        return f"there is no such setting; did you mean {guess}?"
    return f"there is no such setting; the settings are {', '.join(ROWS)}"


def refuse_contradictions(
    workers: int,
    most: int,
    min_spare: int | None,
    max_spare: int | None,
    source: Callable[[str], str],
) -> None:
    """Raise SettingsError for values that are good alone and impossible together.

    source: the words for where the value of a key came from.
    """
    bound = f"max_children = {most} (from {source('max_children')})"
    if workers > most:
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


def refuse_late_soft_timeout(
    soft: float | None, hard: float | None, source: Callable[[str], str]
) -> None:
    """Raise SettingsError for a ``soft_timeout`` that would come when the worker is killed already.

    hard: the ``request_timeout``. source: as for ``refuse_contradictions()``.
    """
    if soft is not None and hard is not None and soft >= hard:
        key = "request_timeout"
        bound = f"{key} = {ROWS[key].shown(hard)} (from {source(key)})"
        allowed = f"less than {bound}, which kills the worker"
        raise SettingsError("soft_timeout", soft, source("soft_timeout"), allowed)
