"""``python -m tests.cluster``: all trials at full length, as root. ``--draw`` writes them into docs/CLUSTER.md.

python -m tests.cluster tails                    ten minutes, in which the machines mostly sleep
python -m tests.cluster rolling faults share     three minutes
python -m tests.cluster envoy
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tests.cluster import report
from tests.cluster.balancers import Envoy, HAProxy, example, plain_haproxy
from tests.cluster.cluster import FRONT_LINES, FRONT_WEB, WORKERS, Cluster
from tests.cluster.load import Order
from tests.cluster.machines import WITH_LINES, WITH_WEB
from tests.cluster.network import MACHINES, why_not
from tests.cluster.trials import fault, rolling, share, tail
from tests.support.processes import become_subreaper, reap_adopted
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

LOADS: Final = (0.7, 0.8, 0.9)
REQUESTS: Final = 100_000
"""Of the rolling restarts."""

LITTLE: Final = 0.008
"""Seconds of their requests, so that the clients leave CPU time for the machines that load their code."""


ORCA_WARM_UP: Final = 5.0
"""Seconds of load in which Envoy learns the weights of the machines: blackout_period and some reports."""


class Trials:
    """Runs the trials that were asked for; each stores its records by name."""

    def __init__(self, folder: Path, seconds: float, requests: int) -> None:
        self.found: dict[str, Any] = {}
        self._folder = folder
        self._seconds = seconds
        self._requests = requests

    def tails(self) -> None:
        """Measure waits at three loads, for four ways of HAProxy."""
        ways = {
            "round robin": (plain_haproxy("roundrobin"), ()),
            "leastconn": (plain_haproxy("leastconn"), ()),
            "weights": (example("haproxy-weights.cfg"), ("--agent-mode", "weight")),
            "one queue": (example("haproxy.cfg"), ()),
        }
        for way, (config, more) in ways.items():
            with Cluster(self._new_folder()) as cluster:
                cluster.boot(*more, *WITH_LINES)
                with HAProxy(cluster.balancer, cluster.folder / "haproxy", config) as haproxy:
                    haproxy.wait_for(status="UP")
                    records = [tail(cluster, load, self._seconds) for load in LOADS]
            self._store("tails", way, records)

    def uneven(self) -> None:
        """Measure waits where the machines have 2, 4 and 6 workers, at 80 % load of all of them."""
        ways = {
            "round robin": plain_haproxy("roundrobin"),
            "leastconn": plain_haproxy("leastconn"),
            "one queue": example("haproxy.cfg"),
        }
        for way, config in ways.items():
            with Cluster(self._new_folder()) as cluster:
                cluster.boot(*WITH_LINES, h1=("--workers", "2"), h3=("--workers", "6"))
                with HAProxy(cluster.balancer, cluster.folder / "haproxy", config) as haproxy:
                    haproxy.wait_for(status="UP")
                    record = tail(cluster, 0.8, self._seconds)
            self._store("uneven", way, record)

    def rolling(self) -> None:
        """Reload and restart all machines under load, behind HAProxy."""
        with Cluster(self._new_folder()) as cluster:
            cluster.boot(*WITH_LINES)
            haproxy = HAProxy(cluster.balancer, cluster.folder / "haproxy", example("haproxy.cfg"))
            with haproxy:
                haproxy.wait_for(status="UP", slim=str(WORKERS))
                order = Order(FRONT_LINES, mean=LITTLE, **self._rolling_load())
                record = rolling(cluster, order, lambda name: _wait_for_haproxy(haproxy, name))
        self._store("rolling", "HAProxy, one queue", record)

    def faults(self) -> None:
        """Cut one machine off and stop another one, behind HAProxy with one queue and with round robin."""
        ways = {
            "HAProxy, one queue": example("haproxy.cfg"),
            "HAProxy, round robin": plain_haproxy("roundrobin"),
        }
        for way, config in ways.items():
            with Cluster(self._new_folder()) as cluster:
                cluster.boot(*WITH_LINES)
                with HAProxy(cluster.balancer, cluster.folder / "haproxy", config) as haproxy:
                    haproxy.wait_for(status="UP")
                    self._do_faults(way, cluster)

    def share(self) -> None:
        """Give one machine more workers."""
        with Cluster(self._new_folder()) as cluster:
            cluster.boot(*WITH_LINES)
            haproxy = HAProxy(cluster.balancer, cluster.folder / "haproxy", example("haproxy.cfg"))
            with haproxy:
                haproxy.wait_for(status="UP", slim=str(WORKERS))
                record = share(cluster, "h1", 4, lambda name: int(haproxy.servers()[name]["slim"]))
        self._store("share", "HAProxy, one queue", record)

    def envoy(self) -> None:
        """Do the same behind Envoy."""
        self._envoy_lines()
        self._envoy_web()

    def _envoy_lines(self) -> None:
        with Cluster(self._new_folder()) as cluster:
            cluster.boot(*WITH_LINES)
            with Envoy(cluster.balancer, cluster.folder / "envoy", example("envoy.yaml")) as envoy:
                _wait_for_envoy(envoy, "lines", 9000)
                records = [tail(cluster, load, self._seconds) for load in LOADS]
                self._store("tails", "Envoy, least request", records)
                record = share(cluster, "h1", 4, _limit_by_agent(cluster))
                self._store("share", "Envoy, least request", record)

    def _envoy_web(self) -> None:
        with Cluster(self._new_folder()) as cluster:
            cluster.boot(*WITH_WEB)
            with Envoy(cluster.balancer, cluster.folder / "envoy", example("envoy.yaml")) as envoy:
                _wait_for_envoy(envoy, "web", 8000)
                records = [tail(cluster, load, self._seconds, is_http=True) for load in LOADS]
                self._store("tails", "Envoy, weights by ORCA", records)
                order = Order(FRONT_WEB, is_http=True, mean=LITTLE, **self._rolling_load())
                record = rolling(cluster, order, lambda _: _wait_for_envoy(envoy, "web", 8000))
                self._store("rolling", "Envoy, HTTP", record)
                self._do_faults("Envoy, HTTP", cluster, is_http=True)
                limit_of = _limit_by_agent(cluster)
                record = share(cluster, "h1", 4, limit_of, warm_up=ORCA_WARM_UP, is_http=True)
                self._store("share", "Envoy, weights by ORCA", record)

    def _do_faults(self, way: str, cluster: Cluster, *, is_http: bool = False) -> None:
        cut = fault(cluster, "h2", cluster.cut, cluster.mend, is_http=is_http)
        self._store("faults", f"{way}: cut off", cut)
        machines = cluster.machines
        frozen = fault(
            cluster,
            "h3",
            lambda name: machines[name].freeze(),
            lambda name: machines[name].thaw(),
            is_http=is_http,
        )
        self._store("faults", f"{way}: stopped", frozen)

    def _rolling_load(self) -> dict[str, Any]:
        return {"clients": 8, "requests": self._requests, "seconds": 600}

    def _new_folder(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self._folder))

    def _store(self, trial: str, name: str, record: object) -> None:
        built = msgspec.to_builtins(record)
        self.found.setdefault(trial, {})[name] = built
        print(f"{trial}: {name}: {json.dumps(built)}", flush=True)  # noqa: T201


def _wait_for_haproxy(haproxy: HAProxy, name: str) -> None:
    wait_until(
        lambda: (
            (one := haproxy.servers()[name])["status"].startswith("UP")
            and one["slim"] == str(WORKERS)
        ),
        lambda: f"HAProxy sends to {name} again: {haproxy.servers()[name]}",
        ceiling=30,
    )


def _limit_by_agent(cluster: Cluster) -> Callable[[str], int]:
    """Return what says how many workers a machine has, where the balancer does not know."""
    return lambda name: int(cluster.machines[name].agent().rpartition(":")[2] or 0)


def _wait_for_envoy(envoy: Envoy, cluster: str, port: int) -> None:
    wait_until(
        lambda: all(envoy.is_healthy(cluster, f"{one}:{port}") for one in MACHINES.values()),
        "Envoy sends to all machines",
        ceiling=30,
    )


def main() -> int:
    """Run the trials, print what was found, and store it."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__)
    names = ("tails", "uneven", "rolling", "faults", "share", "envoy")
    parser.add_argument("trials", nargs="*", metavar="TRIAL", help=f"{', '.join(names)}; or all")
    parser.add_argument("--seconds", type=float, default=40.0, help="of each load of the tails")
    parser.add_argument("--requests", type=int, default=REQUESTS, help="of the rolling restarts")
    parser.add_argument("--store", type=Path, help="a file of earlier results, to add these to")
    parser.add_argument("--draw", action="store_true", help="write docs/CLUSTER.md and its picture")
    given = parser.parse_args()
    if unknown := set(given.trials) - set(names):
        parser.error(
            f"there is no trial {', '.join(sorted(unknown))}; there are {', '.join(names)}"
        )
    if reason := why_not():
        print(reason, file=sys.stderr)  # noqa: T201
        return 1
    become_subreaper()
    # A shell and nohup have background jobs ignore these, and a master leaves an ignored signal alone.
    for number in (signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # no pool is left behind
    folder = Path(tempfile.mkdtemp(prefix="prefork-cluster-"))
    trials = Trials(folder, given.seconds, given.requests)
    store = given.store
    if store is not None and store.exists():
        trials.found = json.loads(store.read_text(encoding="utf-8"))
    try:
        for name in given.trials or names:
            run: Callable[[], None] = getattr(trials, name)
            run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        reap_adopted()
        if store is not None:
            store.write_text(json.dumps(trials.found, indent=1), encoding="utf-8")
    print(report.tables(trials.found))  # noqa: T201
    if given.draw:
        report.write(trials.found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
