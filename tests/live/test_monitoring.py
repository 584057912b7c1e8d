"""The files of examples/monitoring: true to the table of metrics, and tried with a real Prometheus on real pools."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefork.metrics.names import METRICS, Metric, Type
from tests.support.certificates import Authority
from tests.support.clients import datagram_client, server_of
from tests.support.load import Load
from tests.support.server import Program, serving
from tests.support.waiting import CEILING, wait_until

pytestmark = pytest.mark.once  # Prometheus is what is tested

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")

FOLDER = Path(__file__).parents[2] / "examples" / "monitoring"
FILES = sorted(FOLDER.iterdir())
COMMAND_CEILING = 60.0
"""Seconds for a run of promtool, which takes a fraction of one."""

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="promtool is not installed (Debian's package prometheus)",
)
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None,
    reason="prometheus is not installed (Debian's package prometheus)",
)


# --- what the files say


def read_yaml(name: str) -> Any:
    """Return the one document of a YAML file."""
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


DASHBOARD = json.loads((FOLDER / "grafana-dashboard.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
ALERTS = {rule["alert"]: rule for rule in read_yaml("alerts.yml")["groups"][0]["rules"]}
KEDA_QUERY = read_yaml("keda.yaml")["spec"]["triggers"][0]["metadata"]["query"]


@dataclasses.dataclass(frozen=True)
class Query:
    """A question to Prometheus. labels: those that what shows the answer takes from it."""

    expr: str
    instant: bool = False
    labels: tuple[str, ...] = ()


def substituted(expr: str) -> str:
    """Return a query as Grafana sends it: with values for its variables."""
    values = {"job": ".*prefork", "instance": ".+", "__rate_interval": "5s", "__range": "1m"}
    return re.sub(r"\$(\w+)", lambda found: values[found[1]], expr)


def dashboard_queries() -> dict[str, Query]:
    """Return every query of the panels, by panel and letter."""
    return {
        f"{panel['title']} {target['refId']}": Query(
            substituted(target["expr"]),
            instant=target.get("instant", False),
            labels=tuple(re.findall(r"{{(\w+)}}", target["legendFormat"])),
        )
        for panel in PANELS
        for target in panel["targets"]
    }


def variable_queries() -> dict[str, tuple[str, str]]:
    """Return what each variable offers: the values of a label of the series that a selector finds."""
    asked = {
        variable["name"]: substituted(variable["query"]["query"])
        for variable in DASHBOARD["templating"]["list"]
        if variable["type"] == "query"
    }
    pattern = re.compile(r"label_values\((.+), (\w+)\)")
    return {name: pattern.fullmatch(query).groups() for name, query in asked.items()}


def annotation_query() -> Query:
    """Return the query for the reloads."""
    (annotation,) = (one for one in DASHBOARD["annotations"]["list"] if "expr" in one)
    return Query(substituted(annotation["expr"]))


@dataclasses.dataclass(frozen=True)
class Selector:
    """A metric of ours in a query, with its label matchers: label, operator, text."""

    name: str
    matchers: tuple[tuple[str, str, str], ...]

    @property
    def metric(self) -> Metric | None:
        """The row of the table that it is of; of a histogram, any of its three series is."""
        base = re.sub(r"_(bucket|sum|count)$", "", self.name)
        histogram = METRICS.get(base)
        if histogram is not None and histogram.type is Type.HISTOGRAM and base != self.name:
            return histogram
        return METRICS.get(self.name)

    def alternatives(self) -> list[str]:
        """Return it once for each word of a choice such as ``cause=~"exited|killed"``: each must exist."""
        choices = [
            (label, operator, text) for label, operator, text in self.matchers if "|" in text
        ]
        rest = [matcher for matcher in self.matchers if matcher not in choices]
        if not choices:
            return [self._written(rest)]
        return [
            self._written([*rest, (label, "=", word)])
            for label, _, text in choices
            for word in text.split("|")
        ]

    def _written(self, matchers: list[tuple[str, str, str]]) -> str:
        asked = ", ".join(f'{label}{operator}"{text}"' for label, operator, text in matchers)
        return f"{self.name}{{{asked}}}"


def selectors(text: str) -> list[Selector]:
    """Return every metric of ours in a text, and what is asked of its labels."""
    return [
        Selector(name, tuple(re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', matchers)))
        for name, matchers in re.findall(r"\b((?:prefork|process)_\w+)(?:{([^}]*)})?", text)
    ]


# --- without any tool


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_names_are_those_of_the_table(path: Path) -> None:
    """Every metric and label that a file of examples/monitoring names is one that the exporter has."""
    text = path.read_text(encoding="utf-8").replace('\\"', '"')
    for selector in selectors(text):
        metric = selector.metric
        assert metric is not None, f"{path.name} names {selector.name}, which there is not"
        known = {*metric.labels, "job", "instance", "le"}
        assert {label for label, _, _ in selector.matchers} <= known, selector


def test_files_name_metrics() -> None:
    """The search for metrics finds some where there must be some."""
    for name in ("alerts.yml", "alerts_test.yml", "grafana-dashboard.json", "keda.yaml"):
        assert len(selectors((FOLDER / name).read_text(encoding="utf-8"))) > 1, name


def test_alerts_say_what_to_do() -> None:
    """Each alert has a severity, a summary that names the instance, and a description."""
    for name, rule in ALERTS.items():
        assert rule["labels"]["severity"] in {"warning", "critical"}, name
        assert "$labels.instance" in rule["annotations"]["summary"], name
        assert len(rule["annotations"]["description"]) > 80, name
        assert "by (job, instance" in rule["expr"], name


def test_alerts_are_tried_both_ways() -> None:
    """Of each alert there is a case in alerts_test.yml in which it fires and one in which it does not."""
    tried: dict[str, set[bool]] = {name: set() for name in ALERTS}
    for case in read_yaml("alerts_test.yml")["tests"]:
        for check in case["alert_rule_test"]:
            tried[check["alertname"]].add(bool(check["exp_alerts"]))
    assert tried == {name: {True, False} for name in ALERTS}


def test_dashboard_holds_together() -> None:
    """Panels have their own ids, titles, places and the data source of the variable; no two overlap."""
    for key in ("id", "title"):
        values = [panel[key] for panel in DASHBOARD["panels"]]
        assert len(set(values)) == len(values), values
    places: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & places, f"{panel['title']} lies over another panel"
        assert max(x for x, _ in cells) < 24
        places |= cells
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert variables == {"datasource", "job", "instance"}
    for panel in PANELS:
        assert panel["description"], panel["title"]
        for target in panel["targets"]:
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert 'job=~"$job", instance=~"$instance"' in target["expr"], target["expr"]


def test_kubernetes_files_are_what_they_claim() -> None:
    """The manifests parse, and are of the kinds and versions that the operators take."""
    monitor, scaled = read_yaml("kubernetes-podmonitor.yaml"), read_yaml("keda.yaml")
    assert (monitor["apiVersion"], monitor["kind"]) == ("monitoring.coreos.com/v1", "PodMonitor")
    assert monitor["spec"]["podMetricsEndpoints"][0]["path"] == "/metrics"
    assert (scaled["apiVersion"], scaled["kind"]) == ("keda.sh/v1alpha1", "ScaledObject")
    (trigger,) = scaled["spec"]["triggers"]
    assert trigger["type"] == "prometheus"
    assert all(isinstance(value, str) for value in trigger["metadata"].values())


def test_readme_tells_of_every_file() -> None:
    """The README of the folder has a row for each file."""
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(.*?)` \|", readme, re.MULTILINE)) == {
        path.name for path in FILES if path.name != "README.md"
    }


# --- with promtool


@needs_promtool
@pytest.mark.parametrize(
    "command",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "--lint-fatal", "alerts.yml"),
        ("test", "rules", "alerts_test.yml"),
    ],
    ids=" ".join,
)
def test_promtool_accepts(command: tuple[str, ...]) -> None:
    """Prometheus' own checker finds nothing wrong, and each alert fires when it should and only then."""
    done = subprocess.run(
        ["promtool", *command],
        cwd=FOLDER,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_CEILING,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


# --- with a real Prometheus


class Prometheus:
    """A running Prometheus on loopback."""

    def __init__(self, popen: subprocess.Popen[bytes], log: Path) -> None:
        self.popen = popen
        self._log = log
        self._url = f"http://127.0.0.1:{self._port()}"

    def _port(self) -> str:
        wait_until(self._is_ready, "Prometheus is ready", poll=0.02)
        return re.findall(r'msg="Listening on" address=127\.0\.0\.1:(\d+)', self._said())[0]

    def _is_ready(self) -> bool:
        assert self.popen.poll() is None, self._said()
        return "Server is ready to receive web requests" in self._said()

    def _said(self) -> str:
        return self._log.read_text(errors="replace")

    def get(self, path: str, **parameters: str) -> Any:
        """Return the data of an answer of its API; a query it refuses is an AssertionError with its words."""
        url = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=CEILING) as answer:
                said = json.load(answer)
        except urllib.error.HTTPError as refusal:
            with refusal:
                raise AssertionError(f"{parameters}: {refusal.read().decode()}") from None
        assert not said.get("warnings"), said["warnings"]
        return said["data"]

    def ask(self, query: Query) -> list[Any]:
        """Return the series that answer a query now, those that are no number left out."""
        if query.instant:
            found = self.get("query", query=query.expr)["result"]
        else:
            now = time.time()
            span = {"start": f"{now - 2:.3f}", "end": f"{now:.3f}", "step": "0.5"}
            found = self.get("query_range", query=query.expr, **span)["result"]
        return [one for one in found if any(map(math.isfinite, _values(one)))]

    def value(self, expr: str) -> float:
        """Return the one number of a query, 0 for none."""
        found = self.get("query", query=expr)["result"]
        return float(found[0]["value"][1]) if found else 0.0


def _values(series: Any) -> list[float]:
    points = series["values"] if "values" in series else [series["value"]]
    return [float(value) for _, value in points]


@contextlib.contextmanager
def prometheus(folder: Path, targets: list[str]) -> Iterator[Prometheus]:
    """Run Prometheus with the configuration of examples/monitoring, but with these targets and in a hurry."""
    config = read_yaml("prometheus.yml")
    config["global"] = dict.fromkeys(config["global"], "250ms")
    config["scrape_configs"][0]["static_configs"][0]["targets"] = targets
    (folder / "prometheus.yml").write_text(json.dumps(config))  # which is YAML, too
    shutil.copy(FOLDER / "alerts.yml", folder)
    command = [
        "prometheus",
        "--config.file=prometheus.yml",
        "--storage.tsdb.path=data",
        "--web.listen-address=127.0.0.1:0",
    ]
    log = folder / "prometheus.log"
    with log.open("wb") as file:
        popen = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )
    try:
        yield Prometheus(popen, log)
    finally:
        popen.terminate()
        try:
            popen.wait(CEILING)
        except subprocess.TimeoutExpired:
            popen.kill()
            popen.wait()


@dataclasses.dataclass
class Seen:
    """What Prometheus said of two pools: one of streams under load, one that drops datagrams and serves an application.

    answers: of the queries of ``all_queries()``, by their names; a refusal is its words.
    matching: how many series there are of each selector that is used anywhere. offered: the
    values that each variable of the dashboard offers.
    """

    answers: dict[str, list[Any] | str]
    matching: dict[str, int]
    rules: dict[str, Any]
    offered: dict[str, list[str]]


def all_queries() -> dict[str, Query]:
    """Return all queries of the dashboard and of KEDA."""
    keda = Query(KEDA_QUERY.replace("prefork-shop", "prefork"), instant=True)
    return {**dashboard_queries(), "keda": keda, "annotation": annotation_query()}


def all_alternatives() -> set[str]:
    """Return every selector that a query or an alert uses."""
    texts = [query.expr for query in all_queries().values()]
    texts += [rule["expr"] for rule in ALERTS.values()]
    return {one for text in texts for found in selectors(text) for one in found.alternatives()}


STREAMS = serving(workers=2, max_children=4, pause=0.005, metrics_address="127.0.0.1:0")
DATAGRAMS = """
from tests.support.app import *
import prefork
from prefork.wsgi import WSGIServer

class Datagrams(prefork.PreForkingUDPServer):
    workers, max_children, pause = 1, 2, 0.02
    metrics_address = "127.0.0.1:0"

    def when_ready(self):
        announce(self)
        announce(web)

class Encrypted(prefork.PreForkingTCPServer):
    tls_certificate = "server.pem"

def application(environ, start_response):
    start_response("200 OK", [])
    return []

log_to_stderr()
with (
    Datagrams(LOOPBACK, EchoDatagram) as datagrams,
    Encrypted(LOOPBACK, Echo) as encrypted,
    WSGIServer(LOOPBACK, application) as web,
):
    prefork.serve(datagrams, encrypted, web)
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Let a real Prometheus scrape real pools in trouble for some seconds, ask it everything, end all."""
    folder = tmp_path_factory.mktemp("monitoring")
    Authority(folder).server("localhost", file="server")
    with (
        Program(STREAMS, folder, name="streams") as streams,
        Program(DATAGRAMS, folder, name="datagrams") as datagrams,
        Load(streams.address(), clients=3),
        prometheus(folder, [metrics_of(streams), metrics_of(datagrams)]) as server,
    ):
        wait_for_scrapes(server, 4)
        os.kill(server_of(streams.address()), signal.SIGKILL)
        flood(datagrams)
        urllib.request.urlopen("http://{}:{}/".format(*datagrams.address(1)), timeout=60).close()
        wait_until(
            lambda: (
                server.value("sum(prefork_worker_exits_total) >= 1")
                and server.value("sum(prefork_socket_receive_drops_total) >= 1")
            ),
            "the death and the drops in Prometheus",
            poll=0.1,
        )
        wait_for_scrapes(server, 16)
        return question(server)


def metrics_of(program: Program) -> str:
    """Return the address of a pool's metrics process, once that serves."""
    (line,) = program.wait_logged(r"metrics.* ready .*address=")
    return re.findall(r"address=(\S+)", line)[0]


def flood(program: Program) -> None:
    """Send more datagrams at once than the kernel keeps for one worker that is slow."""
    with datagram_client(program.address()) as client:
        for _ in range(1000):
            client.send(bytes(1000))


def wait_for_scrapes(server: Prometheus, count: int) -> None:
    """Wait until each pool was scraped so often."""
    wait_until(
        lambda: server.value("min(sum_over_time(up[1m]))") >= count,
        f"{count} scrapes of each pool",
        poll=0.1,
    )


def question(server: Prometheus) -> Seen:
    """Ask Prometheus everything."""
    answers: dict[str, list[Any] | str] = {}
    for name, query in all_queries().items():
        try:
            answers[name] = server.ask(query)
        except AssertionError as refusal:
            answers[name] = str(refusal)
    (group,) = server.get("rules")["groups"]
    return Seen(
        answers,
        {one: len(server.get("query", query=one)["result"]) for one in all_alternatives()},
        {rule["name"]: rule for rule in group["rules"]},
        {
            name: server.get(f"label/{label}/values", **{"match[]": selector})
            for name, (selector, label) in variable_queries().items()
        },
    )


@needs_prometheus
@pytest.mark.parametrize("name", dashboard_queries())
def test_dashboard_shows_data(seen: Seen, name: str) -> None:
    """A query of the dashboard is valid, returns numbers, and has the labels that its legend names."""
    answer = seen.answers[name]
    assert isinstance(answer, list), answer
    assert answer, f"nothing answers {dashboard_queries()[name].expr}"
    for series in answer:
        assert set(dashboard_queries()[name].labels) <= series["metric"].keys()


@needs_prometheus
def test_dashboard_annotates_reloads(seen: Seen) -> None:
    """The query for the reloads is valid, and says nothing when there was none."""
    assert seen.answers["annotation"] == []


@needs_prometheus
def test_keda_gets_one_number(seen: Seen) -> None:
    """The query of keda.yaml gives one number, as KEDA needs it."""
    answer = seen.answers["keda"]
    assert isinstance(answer, list), answer
    assert len(answer) == 1, answer


@needs_prometheus
def test_selectors_match(seen: Seen) -> None:
    """All that alerts and queries select is there, each word of a choice, also while its count is 0."""
    assert [selector for selector, series in seen.matching.items() if not series] == []


@needs_prometheus
def test_alerts_are_evaluated(seen: Seen) -> None:
    """Prometheus evaluates every rule on real series without an error."""
    assert {name: rule["health"] for name, rule in seen.rules.items()} == dict.fromkeys(
        ALERTS, "ok"
    )


@needs_prometheus
def test_variables_have_values(seen: Seen) -> None:
    """The variables of the dashboard find the job and both pools."""
    assert seen.offered["job"] == ["prefork"]
    assert len(seen.offered["instance"]) == 2


@needs_prometheus
def test_trouble_is_seen(seen: Seen) -> None:
    """The panels of deaths and drops, and the alert on drops, show the worker that was killed and the datagrams that were lost."""
    assert greatest(seen, "Exits by cause A", cause="killed") > 0
    assert greatest(seen, "Unexpected deaths A") > 0
    assert greatest(seen, "Datagrams dropped per second A") > 0
    assert seen.rules["PreforkDatagramDrops"]["state"] == "pending"


@needs_prometheus
def test_what_is_well_raises_no_alert(seen: Seen) -> None:
    """Pools that answer, whose masters look around and that nobody reloaded are no trouble."""
    for name in ("PreforkMetricsMissing", "PreforkMasterHung", "PreforkReloadFailed"):
        assert seen.rules[name]["state"] == "inactive", seen.rules[name]


def greatest(seen: Seen, name: str, **labels: str) -> float:
    """Return the greatest number in the answer to a query of the dashboard, in series with these labels."""
    answer = seen.answers[name]
    assert isinstance(answer, list), answer
    return max(
        value
        for series in answer
        if labels.items() <= series["metric"].items()
        for value in _values(series)
    )
