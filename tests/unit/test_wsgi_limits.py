"""Limits of servers of WSGI applications: each place that can set one is heard."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

import prefork
from prefork.cli.serve_plan import Requested, plan
from prefork.edge.setup import KEYS, EdgeSettings, configure
from prefork.host.addresses import Address
from prefork.workers.settings import ROWS
from prefork.wsgi import WSGIServer
from prefork.wsgi.limits import limits_of

if TYPE_CHECKING:
    from collections.abc import Callable


def application(_environ: dict[str, Any], _start_response: Callable[..., Any]) -> list[bytes]:
    """Stand where an application is needed that is not called."""
    raise AssertionError


class Shop(WSGIServer):
    """A server class of a program, with limits of its own."""

    limit_body = "10K"
    limit_fields = 7

    def __init__(self, address: Any) -> None:
        super().__init__(address, application)


def limits(given: prefork.Settings | None = None, **attributes: object) -> dict[str, object]:
    """Return the limits of a server with these attributes."""
    found = limits_of(SimpleNamespace(**attributes), given)
    return {name: getattr(found, name) for name in ("head", "fields", "body", "head_time")}


def test_limits_come_from_attributes_and_then_from_the_pool() -> None:
    """A server has what its attributes say, then what ``serve(settings=…)`` says, then the defaults."""
    defaults = {"head": 32768, "fields": 100, "body": None, "head_time": 5.0}
    assert limits() == defaults
    assert limits(limit_body="2K", edge_timeout="100ms", limit_head="4K") == defaults | {
        "head": 4096,
        "body": 2048,
        "head_time": 0.1,
    }
    given = prefork.Settings(limit_body=3, edge_timeout="2s", limit_fields=9)
    of_pool = {"fields": 9, "body": 3, "head_time": 2.0}
    assert limits(given) == defaults | of_pool
    assert limits(given, limit_fields=7) == defaults | of_pool | {"fields": 7}
    proxied = prefork.Settings(forwarded_from="10.0.0.0/8")
    assert limits_of(SimpleNamespace(), None).trust is None
    assert limits_of(SimpleNamespace(), proxied).trust is not None


def test_settings_of_the_pool_reach_a_server_that_has_the_defaults_as_attributes() -> None:
    """The attributes of a server class that equal the defaults leave the settings of the pool in force."""
    given = prefork.Settings(edge_timeout=2, limit_head="4K", limit_body=3)
    with WSGIServer(("127.0.0.1", 0), application) as server:
        found = limits_of(server, given)
    assert (found.head_time, found.head, found.body, found.fields) == (2.0, 4096, 3, 100)


def test_time_for_a_head_of_the_command_line_counts() -> None:
    """``--edge-timeout`` is the time for a head: the command line keeps it beside the attributes."""
    values = {key: ROWS[key].default for key in KEYS} | {"edge_timeout": 1.5}
    server = SimpleNamespace()
    configure(server, EdgeSettings(values, {}))
    assert limits_of(server, None).head_time == 1.5


@pytest.mark.parametrize(
    ("attribute", "value"), [("limit_body", "lots"), ("limit_head", 1), ("edge_timeout", "soon")]
)
def test_wrong_limits_are_refused(attribute: str, value: object) -> None:
    """A limit that cannot be is refused with its attribute, before anything is bound."""
    cls = type("Shop", (WSGIServer,), {attribute: value})
    with pytest.raises(prefork.SettingsError, match=f"attribute Shop.{attribute}"):
        cls(("no such host", -1), application)


def several() -> list[WSGIServer]:
    """Return servers, as a factory does."""
    return [Shop(("127.0.0.1", 0)), Shop(("127.0.0.1", 0))]


@pytest.mark.parametrize(
    ("found", "factory"),
    [(Shop, False), (lambda: Shop(("127.0.0.1", 0)), True), (several, True), (lambda: Shop, True)],
    ids=["class", "factory", "factory of several", "factory of a class"],
)
def test_limits_of_the_command_line_reach_servers_of_the_program(
    found: Callable[..., Any], *, factory: bool
) -> None:
    """Limits of flags, environment and file replace the attributes of a server, however the command line gets it."""
    requested = Requested([Address.parse("127.0.0.1:0")], limits={"limit_body": 3})
    servers: list[Any] = plan("app:it", found, requested, factory=factory).build()
    for server in servers:
        server.server_close()
    found = [limits_of(server, None) for server in servers]
    assert {(one.body, one.fields) for one in found} == {(3, 7)}
