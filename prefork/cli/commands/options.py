"""The flags of the commands. The flags of settings come from the table of settings, in sections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click
import msgspec

from prefork.cli import environment
from prefork.inspect.remote import MOST_URLS, Url
from prefork.workers.settings import ROWS, Row

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from click.shell_completion import CompletionItem

SECTIONS: Final = {
    "Where to listen": ("bind", "backlog"),
    "Workers": ("workers", "max_children", "min_spare", "max_spare"),
    "Limits of a request": (
        *("request_timeout", "soft_timeout", "cpu_timeout", "slow_request"),
        *("client_timeout", "check_client", "defer_accept"),
        *("max_queue_wait", "max_per_client"),
        *("graceful_timeout", "drain_delay"),
    ),
    "Who may connect": ("proxy_from", "allow", "deny", "edge_timeout", "max_auth_failures"),
    "Encryption": (
        *("tls_certificate", "tls_key", "tls_key_password_file", "tls_client_ca"),
        *("tls_alpn", "tls_watch"),
    ),
    "Idle connections": ("max_parked", "park_timeout", "park_new", "linger"),
    "Requests of WSGI applications": (
        *("limit_head", "limit_fields", "limit_body"),
        *("forwarded_from", "forwarded_fields"),
    ),
    "Replacing workers": ("max_requests", "max_lifetime", "max_memory", "jitter"),
    "State of a worker": ("restore_process",),
    "Limits of a worker": ("limits", "nice", "oom_score_adj"),
    "Starting workers": ("boot_timeout", "crash_loop", "fork_check"),
    "Logs and metrics": (
        *("log_level", "log_format", "log_config", "access_log"),
        *("metrics", "metrics_dir", "agent", "agent_mode"),
    ),
    "Processes": ("name", "user", "group", "umask", "pidfile"),
}
"""The sections of the help, with the keys of the settings in their order. Each setting stands in
one of them.
"""


class CommandWithSettings(click.Command):
    """A command whose help shows the flags of settings in sections."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own flags, and then the settings section by section."""
        records = {
            parameter.name: record
            for parameter in self.get_params(ctx)
            if isinstance(parameter, click.Option)
            and (record := parameter.get_help_record(ctx)) is not None
        }
        width = max(len(flags) for flags, _ in records.values())
        settings = {key for keys in SECTIONS.values() for key in keys}
        own = [key for key in records if key not in settings]
        for title, keys in {"Options": own, **SECTIONS}.items():
            with formatter.section(title):
                rows = [records[key] for key in keys if key in records]
                formatter.write_dl([(flags.ljust(width), text) for flags, text in rows])


def setting_options(*, hidden: bool = False) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Give a command ``--config`` and one flag for each setting.

    The values arrive as text; the table of settings checks and converts them. hidden: the help of
    the command leaves the flags out.
    """

    def decorate(command: Callable[..., int]) -> Callable[..., int]:
        for key in reversed([key for keys in SECTIONS.values() for key in keys]):
            command = _setting_option(key, hidden=hidden)(command)
        command = surroundings(command)
        return click.option(
            "-c",
            "--config",
            metavar="FILE",
            help="Read settings from this TOML file. Without it: ./prefork.toml, or the table "
            "[tool.prefork] of ./pyproject.toml.",
        )(command)

    return decorate


def surroundings(command: Callable[..., int]) -> Callable[..., int]:
    """Give a command ``--chdir`` and ``--env-file``, which take effect before anything is read."""
    command = click.option(
        "--env-file",
        metavar="FILE",
        multiple=True,
        is_eager=True,
        expose_value=False,
        callback=lambda _context, _parameter, given: environment.load_all(given),
        help="Read environment variables from this file; those that are set already stay.",
    )(command)
    return click.option(
        "--chdir",
        metavar="PATH",
        is_eager=True,
        expose_value=False,
        callback=lambda _context, _parameter, given: environment.change_folder(given),
        help="Change to this directory first.",
    )(command)


def _setting_option(
    key: str, *, hidden: bool
) -> Callable[[Callable[..., int]], Callable[..., int]]:
    row = ROWS[key]
    words = f"{'|'.join(row.choices)}; " if row.choices else ""
    default = "" if row.default is None else f"  [{words}default: {row.shown(row.default)}]"
    return click.option(
        *([row.flag] if row.about.short is None else [row.about.short, row.flag]),
        row.key,
        metavar=row.about.metavar,
        multiple=row.is_list,
        hidden=hidden,
        shell_complete=_complete(row) if row.choices else None,
        help=f"{row.about.help}{default}",
    )


def _complete(row: Row) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    def words(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[str]:
        return [word for word in row.choices if word.startswith(begun)]

    return words


SAME_FLAGS: Final = "The flags of settings that 'prefork run --help' lists are accepted, too."
"""The end of the help of a command that hides the flags of settings."""

factory_option = click.option(
    "--factory", is_flag=True, help="TARGET is a function; serve what it returns."
)


watch_option = click.option(
    "--watch", is_flag=True, help="Reload when a source file changes, for development."
)


def which_pool(command: Callable[..., int]) -> Callable[..., int]:
    """Give a command the two ways to name a running pool.

    Where only one pool runs, neither is needed.
    """
    return click.argument(
        "pool", required=False, metavar="[NAME|PID]", shell_complete=running_pools
    )(_with_name(command))


def which_pools(command: Callable[..., int]) -> Callable[..., int]:
    """Give a command the ways to name one running pool of this machine, or several pools by their URLs."""
    return click.argument(
        "pools", nargs=-1, metavar="[NAME|PID|URL...]", shell_complete=running_pools
    )(_with_name(command))


def urls_in(pools: Sequence[str], name: str | None) -> list[Url]:
    """Return the URLs among the arguments of a command with ``which_pools``; [] where one pool of this machine is meant."""
    if not any("://" in one for one in pools):
        if len(pools) > 1:
            raise click.UsageError(
                "name one pool of this machine, or several by their URLs, such as http://web1:9100"
            )
        return []
    if name is not None:
        raise click.UsageError("--name is for a pool of this machine, not for URLs")
    if len(pools) > MOST_URLS:
        raise click.UsageError(f"there are {len(pools)} URLs; at most {MOST_URLS} are asked")
    return [*dict.fromkeys(Url.parse(one) for one in pools)]


def _with_name(command: Callable[..., int]) -> Callable[..., int]:
    return click.option(
        "-n",
        "--name",
        metavar="NAME",
        shell_complete=running_pools,
        help="Name of the pool, for a name that looks like a pid.",
    )(command)


def running_pools(
    _context: click.Context, _parameter: click.Parameter, begun: str
) -> list[CompletionItem]:
    """Return the names and pids of the running pools that begin so, for completion by a shell."""
    from click.shell_completion import CompletionItem  # noqa: PLC0415 - for shells only

    from prefork.inspect.survey import look_around  # noqa: PLC0415

    survey = look_around()
    try:
        found = [
            CompletionItem(word, help=pool.where)
            for pool in survey.pools
            for word in ((pool.name,) if pool.name else ()) + (str(pool.pid),)
            if word.startswith(begun)
        ]
    finally:
        survey.close()
    return found


_TIMEOUT: Final = msgspec.structs.replace(ROWS["graceful_timeout"], key="timeout")


def timeout_option(default: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Give a command ``--timeout``. default: how long it waits without this flag, in words."""
    return click.option(
        "--timeout",
        metavar="DURATION",
        callback=lambda _context, _parameter, raw: _seconds(raw),
        help=f"How long to wait, such as 30s or 5m.  [default: {default}]",
    )


def _seconds(raw: str | None) -> float | None:
    if raw is None:
        return None
    seconds: float = _TIMEOUT.converted(raw, f"flag {_TIMEOUT.flag}", text=True)
    return seconds
