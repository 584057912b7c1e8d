"""``prefork haproxy``: print the section of HAProxy's configuration that spreads requests over several pools."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import click
import msgspec

from prefork.cli.commands.exit_code import ExitCode
from prefork.host.addresses import Address
from prefork.workers.errors import SettingsError
from prefork.workers.hosts import is_portable_host, with_port
from prefork.workers.text import printable

_BACKEND: Final = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_PORT: Final = click.IntRange(1, 65_535)


class Machine(msgspec.Struct, frozen=True):
    """One machine. host: a name, or an address without brackets. port: of its pool."""

    host: str
    port: int

    @property
    def address(self) -> str:
        """The address as HAProxy reads it."""
        return with_port(self.host, self.port)


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """The values of the command's flags."""

    backend: str
    mode: str
    weights: bool
    metrics_port: int
    agent_port: int
    send_proxy: bool


EPILOG: Final = """\
\b
Examples:
  prefork haproxy web1:8000 web2:8000 >> /etc/haproxy/haproxy.cfg
  prefork haproxy --mode http --port 8000 10.0.0.1 10.0.0.2 fd00::3
"""


@click.command(
    "haproxy", short_help="Print a backend of HAProxy for several machines.", epilog=EPILOG
)
@click.argument("hosts", nargs=-1, required=True, metavar="HOST[:PORT]...")
@click.option(
    "-p",
    "--port",
    type=_PORT,
    default=8000,
    show_default=True,
    help="Port of the pool, for a HOST without one.",
)
@click.option(
    "--metrics-port",
    type=_PORT,
    default=9100,
    show_default=True,
    help="Port of the setting metrics.",
)
@click.option(
    "--agent-port", type=_PORT, default=9101, show_default=True, help="Port of the setting agent."
)
@click.option(
    "--mode",
    type=click.Choice(["tcp", "http"]),
    default="tcp",
    show_default=True,
    help="What HAProxy counts: connections, or requests of HTTP.",
)
@click.option(
    "--weights",
    is_flag=True,
    help="Have each machine queue, and give more to the idle ones; for pools with agent_mode = weight.",
)
@click.option(
    "--send-proxy",
    is_flag=True,
    help="Send a PROXY header with the client's address; for pools with proxy_from.",
)
@click.option("--backend", default="prefork", show_default=True, metavar="NAME", help="Its name.")
def command(
    hosts: Sequence[str],
    port: int,
    *,
    metrics_port: int,
    agent_port: int,
    mode: str,
    backend: str,
    weights: bool,
    send_proxy: bool,
) -> int:
    """Print a backend for the configuration of HAProxy 2.6 or later.

    Each HOST runs a pool with the settings metrics and agent. HAProxy then has one queue for all of them: a
    request goes to a machine only while a worker is free there. docs/CLUSTER.md says when one queue is
    the right way, and what the lines mean.
    """
    if not _BACKEND.fullmatch(backend):
        raise click.UsageError(
            f"--backend {printable(backend)}: it must be 1 to 64 letters, digits or any of _ . : -"
        )
    machines = [_machine(host, port) for host in hosts]
    if twice := next((one for one in machines if machines.count(one) > 1), None):
        raise click.UsageError(f"{twice.address} is given twice; each machine is one server")
    chosen = Choice(
        backend=backend,
        mode=mode,
        weights=weights,
        metrics_port=metrics_port,
        agent_port=agent_port,
        send_proxy=send_proxy,
    )
    click.echo("\n".join(section(machines, chosen)))
    return ExitCode.OK


def _machine(text: str, port: int) -> Machine:
    """Read ``HOST``, ``HOST:PORT``, ``[ADDRESS]`` or ``[ADDRESS]:PORT``. port: where the text has none."""
    if is_portable_host(text):
        return Machine(text, port)
    try:
        address = Address.parse(f"{text}:{port}" if text.endswith("]") else text)
    except SettingsError:
        address = Address("tcp")
    # HAProxy resolves no zone of an IPv6 address, and Python accepts any text as one, also the end of a line.
    is_good = address.scheme == "tcp" and address.port and is_portable_host(address.host)
    if not is_good or text.startswith(":"):
        raise click.UsageError(
            f"{printable(text)}: it must be a host and perhaps a port, such as web1, 10.0.0.1:8000 or [fd00::1]:8000"
        )
    return Machine(address.host, address.port)


def section(machines: Sequence[Machine], chosen: Choice) -> list[str]:
    """Return the lines of the backend (pure)."""
    server = f"default-server agent-check agent-port {chosen.agent_port} agent-inter 250ms"
    lines = [
        f'# Printed by prefork haproxy. Each machine runs a pool with agent = ":{chosen.agent_port}" and metrics = ":{chosen.metrics_port}".',
        f"backend {chosen.backend}",
        f"    mode {chosen.mode}",
        *_balance(chosen),
        "    # A machine that does not answer in time is left for another one.",
        "    timeout connect 500ms",
        "    timeout check 400ms",
        "    timeout server 60s",
        "    retries 3",
        "    option redispatch 1",
        *(["    retry-on conn-failure"] if chosen.mode == "http" else []),
        "    # /livez says whether the pool lives; the agent says how much it takes.",
        "    option httpchk",
        "    http-check send meth GET uri /livez",
        f"    default-server check port {chosen.metrics_port} inter 400ms fastinter 100ms fall 3 rise 1",
        f"    {server} {'weight 100' if chosen.weights else 'maxconn 1'}",
        *(["    default-server send-proxy-v2"] if chosen.send_proxy else []),
    ]
    names = _names(machines)
    servers = [
        f"    server {name} {one.address}" for name, one in zip(names, machines, strict=True)
    ]
    return [*lines, *servers]


def _balance(chosen: Choice) -> list[str]:
    if chosen.weights:
        return ["    balance roundrobin"]
    return [
        "    # maxconn follows the agent: what no worker is free for waits here, in one queue for all machines.",
        "    balance leastconn",
        "    timeout queue 30s",
    ]


def _names(machines: Sequence[Machine]) -> list[str]:
    """Return a name for each server: its host, with the port where several servers have this host.

    Two different machines may come to the same name by this. Then all servers have numbers instead.
    """
    hosts = [re.sub(r"[^A-Za-z0-9_.-]", "-", one.host) for one in machines]
    names = [
        f"{host}-{one.port}" if hosts.count(host) > 1 else host
        for host, one in zip(hosts, machines, strict=True)
    ]
    if len({*names}) == len(names):
        return names
    return [f"server-{number}" for number, _ in enumerate(machines, 1)]
