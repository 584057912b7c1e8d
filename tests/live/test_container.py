"""The example of a container: what its files say, and their settings as process 1 of a PID namespace.

No image is built here: the files are read, and what they promise is tried with the same settings in
namespaces of the kernel.
"""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefork.workers.layers import Layer, resolve
from prefork.workers.settings import ROWS
from tests.support.clients import ask, read_all, send, server_of
from tests.support.processes import children_of, live_children_of, status_of
from tests.support.server import environment, serving
from tests.support.waiting import Stopwatch, wait_until

if TYPE_CHECKING:
    from tests.support.clients import Address
    from tests.support.server import Program

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "examples" / "container"
APPLICATION = REPOSITORY / "examples" / "web"


# --- what the files say ----------------------------------------------------------------------------


def manifests() -> dict[str, Any]:
    """Return the documents for Kubernetes by kind."""
    documents = yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text(encoding="utf-8"))
    return {document["kind"]: document for document in documents}


POD = manifests()["Deployment"]["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
ENVIRONMENT = {one["name"]: one["value"] for one in CONTAINER["env"]}

_INSTRUCTION = re.compile(r"^([A-Z]+)\s+((?:.*\\\n)*.*)$", re.MULTILINE)


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Containerfile's last stage, continued lines joined."""
    text = (FOLDER / "Containerfile").read_text(encoding="utf-8")
    text = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    found = [
        (name, " ".join(rest.replace("\\\n", " ").split()))
        for name, rest in _INSTRUCTION.findall(text)
    ]
    last = max(number for number, (name, _) in enumerate(found) if name == "FROM")
    return found[last:]


def image_environment() -> dict[str, str]:
    """Return what ENV sets."""
    words = " ".join(rest for name, rest in instructions() if name == "ENV").split()
    return dict(word.split("=", 1) for word in words)


def setting(key: str) -> float:
    """Return a duration that the Deployment sets."""
    given = Layer({key: ENVIRONMENT[ROWS[key].variable]}, str, text=True)
    value: float = getattr(resolve([given]).settings, key)
    return value


def test_image_is_what_a_first_process_needs() -> None:
    """The entry point is a list (no shell takes the signals), TERM stops it, and its user is a number that is not root's."""
    found = dict(instructions())
    assert found["FROM"].startswith("python:3.")
    command = json.loads(found["ENTRYPOINT"])
    assert command[:2] == ["prefork", "run"]
    assert found["STOPSIGNAL"] == "SIGTERM"
    assert int(found["USER"].partition(":")[0]) > 0
    copied = [
        rest.split() for name, rest in instructions() if name == "COPY" and "--from" not in rest
    ]
    assert [source for source, _ in copied] == [f"examples/web/{command[2].partition(':')[0]}"]
    assert all((REPOSITORY / source).is_file() for source, _ in copied)


def test_grace_is_longer_than_a_stop_takes() -> None:
    """Kubernetes kills after drain_delay and graceful_timeout, and some seconds to spare."""
    stop = setting("drain_delay") + setting("graceful_timeout")
    assert POD["terminationGracePeriodSeconds"] >= stop + 5


def test_drain_is_longer_than_the_probe_takes() -> None:
    """The readiness probe fails within the drain delay, and twice that is left for who reads the endpoints."""
    probe = CONTAINER["readinessProbe"]
    assert setting("drain_delay") >= 2 * probe["periodSeconds"] * probe["failureThreshold"]


def test_start_is_given_its_time() -> None:
    """The startup probe waits longer than a worker may take to boot."""
    probe = CONTAINER["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] > setting("boot_timeout")


def test_probes_ask_the_metrics_process() -> None:
    """Each probe has its own path, on the port on which the metrics process listens."""
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert ENVIRONMENT["PREFORK_METRICS"].endswith(f":{ports['metrics']}")
    assert ENVIRONMENT["PREFORK_BIND"].endswith(f":{ports['http']}")
    asked = {
        name: (CONTAINER[name]["httpGet"]["path"], CONTAINER[name]["httpGet"]["port"])
        for name in ("startupProbe", "readinessProbe", "livenessProbe")
    }
    assert asked == {
        "startupProbe": ("/readyz", "metrics"),
        "readinessProbe": ("/readyz", "metrics"),
        "livenessProbe": ("/livez", "metrics"),
    }


def test_service_finds_the_pods() -> None:
    """The Service selects the Deployment's pods, sends to a port that they name, and is not called prefork."""
    service, deployment = manifests()["Service"], manifests()["Deployment"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    names = {port["name"] for port in CONTAINER["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= names
    # Its pods would get PREFORK_PORT and PREFORK_SERVICE_HOST.
    assert service["metadata"]["name"] != "prefork"


def test_container_may_do_little() -> None:
    """Not root, no privileges to gain, nothing to write to."""
    assert POD["securityContext"]["runAsNonRoot"] is True
    limits = CONTAINER["securityContext"]
    assert (limits["readOnlyRootFilesystem"], limits["allowPrivilegeEscalation"]) == (True, False)
    assert limits["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("whose", ["image", "deployment"])
def test_variables_are_settings(whose: str) -> None:
    """Every variable of the files is a setting with a value that is accepted, without a word of warning."""
    values = image_environment() if whose == "image" else ENVIRONMENT
    (target,) = json.loads(dict(instructions())["ENTRYPOINT"])[2:]
    done = subprocess.run(
        [sys.executable, "-m", "prefork", "check", target],
        env=environment(**values),
        cwd=APPLICATION,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


# --- as process 1 ----------------------------------------------------------------------------------

# The child of unshare dies with it, so that nothing is left when a test fails.
NAMESPACE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]

# As a container with a read-only root: every file system is, where files are kept. The user has no
# name, no home, no right. An interpreter in somebody's private folder is put where all may go.
_GIVE_UP_ALL = """
private=$1 python=$2
cd "$3" || exit 97
shift 3
if test -n "$private"; then
    mount --bind "$python" /mnt && mount -t tmpfs -o mode=755 none "$private" && mkdir -p "$python" \\
        && mount --move /mnt "$python" && mount -o remount,ro "$private" || exit 98
fi
for place in / /tmp /dev/shm /var/tmp /run; do mount -o remount,bind,ro "$place" 2>/dev/null; done
for place in / /tmp /dev/shm; do test ! -w "$place" || exit 99; done
unset HOME
exec setpriv --reuid 4711 --regid 4711 --clear-groups --inh-caps=-all --bounding-set=-all \\
    --no-new-privs "$@"
"""


def private_folder(path: str) -> str:
    """Return the first folder on the way to a path that only its owner may enter; "" for none."""
    for folder in reversed(Path(path).parents):
        if not folder.stat().st_mode & stat.S_IXOTH:
            return str(folder)
    return ""


READ_ONLY = ["unshare", "--mount", *NAMESPACE[1:], "sh", "-c", _GIVE_UP_ALL, "sh"]
READ_ONLY += [private_folder(sys.base_prefix), sys.base_prefix, str(APPLICATION)]


_PROBE = "import subprocess, sys, prefork; subprocess.run([sys.executable, '-c', ''], check=True)"


@cache
def why_not(*command: str) -> str:
    """Why such a container cannot be made here; "" when it can."""
    try:
        done = subprocess.run(
            [*command, sys.executable, "-c", _PROBE],
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return "unshare is not installed"
    return f"no such container here: {done.stderr.strip()}" if done.returncode else ""


needs_namespace = pytest.mark.skipif(why_not(*NAMESPACE) != "", reason=why_not(*NAMESPACE))
needs_read_only = pytest.mark.skipif(why_not(*READ_ONLY) != "", reason=why_not(*READ_ONLY))

Contain = Callable[..., "Program"]


@pytest.fixture
def contain(start: Callable[..., Program]) -> Iterator[Contain]:
    """``contain(source)`` starts a program as process 1; unshare heeds no TERM, so it is ended here."""
    programs = []

    def contained(source: str | None, before: list[str] = NAMESPACE, **options: Any) -> Program:
        programs.append(start(source, before=before, **options))
        return programs[-1]

    yield contained
    for program in programs:
        program.popen.kill()


def master_of(program: Program) -> int:
    """Return the pid, as seen from here, of the process that is PID 1 in there."""
    return wait_until(lambda: live_children_of(program.pid), "the child of unshare").pop()


def reload(program: Program, master: int, nth: int = 1) -> None:
    """Have it reload, and wait until all workers are new."""
    os.kill(master, signal.SIGHUP)
    wait_until(
        lambda: program.logged(rf"master reloaded generation={nth}"),
        lambda: f"a reload that is over:\n{program.log[-4000:]}",
    )


def metrics_of(program: Program) -> str:
    """Return where the metrics process answers, once it does."""
    (line, *_) = program.wait_logged(r"metrics pid=\d+ ready")
    match = re.search(r"address=(\S+)", line)
    assert match is not None
    return match[1]


def status_at(address: str, path: str) -> int:
    """Return the status of an answer of the metrics process."""
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


@needs_namespace
def test_reload_as_process_1(contain: Contain) -> None:
    """HUP replaces the code of process 1 in place: the same process, twice, and nobody waits in vain."""
    program = contain(serving(workers=2))
    address = program.address()
    master = master_of(program)
    for nth in (1, 2):
        before = live_children_of(master)
        reload(program, master, nth)
        assert master_of(program) == master
        assert status_of(master)["NSpid"].split() == [str(master), "1"]
        assert not before & live_children_of(master)
        assert server_of(address) > 1
    os.kill(master, signal.SIGTERM)
    assert program.wait() == 0


@needs_namespace
def test_orphans_are_reaped_after_a_reload(contain: Contain) -> None:
    """After the exec, too, process 1 reaps what handlers leave behind, and takes none of it for a worker."""
    program = contain(serving("Run", workers=2))
    address = program.address()
    master = master_of(program)
    # One is there while the master becomes another image, and ends under the new one.
    lingering = "(until [ -e reloaded ]; do sleep 0.02; done) &"
    ask(address, f"subprocess.run(['sh', '-c', {lingering!r}])")
    reload(program, master)
    program.stderr_path.with_name("reloaded").touch()
    for _ in range(10):
        ask(address, "subprocess.run(['sh', '-c', 'sleep 0.02 &'])")
    workers = {pid for pid in live_children_of(master) if "prefork" in title(pid)}
    assert len(workers) == 2
    wait_until(
        lambda: {child.pid for child in children_of(master)} == workers,
        lambda: f"only the workers are left: {children_of(master)}",
    )
    assert not program.logged("exited cause=(?!reloaded)")


def title(pid: int) -> str:
    """Return the title of a process, "" for one that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


@needs_namespace
def test_term_ends_it_within_its_grace(contain: Contain) -> None:
    """A request in hand is finished, one that never ends is killed at graceful_timeout, and the exit code is 0."""
    program = contain(serving("TellingRun", workers=2, graceful_timeout=2))
    address = program.address()
    master = master_of(program)
    with send(address, "time.sleep(1)") as polite, send(address, "time.sleep(60)"):
        program.told("busy", 1)
        watch = Stopwatch()
        os.kill(master, signal.SIGTERM)
        assert read_all(polite).endswith(" None")
        assert program.wait() == 0
        assert 1.5 < watch.seconds < 15


@needs_namespace
def test_not_ready_at_once_and_accepting_for_a_while(contain: Contain) -> None:
    """From TERM on readyz says 503, livez does not, and clients are still served during drain_delay; then it ends with 0."""
    flags = ["-w", "1", "-b", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--drain-delay", "4s"]
    program = contain(None, arguments=["-m", "prefork", "run", "tests.support.app:Echo", *flags])
    metrics = metrics_of(program)
    wait_until(lambda: status_at(metrics, "/readyz") == 200, "a pool that is ready")
    (line,) = program.logged("listeners=")
    port = re.search(r"tcp://127\.0\.0\.1:(\d+)", line)
    assert port is not None
    address: Address = ("127.0.0.1", int(port[1]))

    watch = Stopwatch()
    os.kill(master_of(program), signal.SIGTERM)
    wait_until(lambda: status_at(metrics, "/readyz") == 503, "readyz says no")
    assert status_at(metrics, "/livez") == 200
    assert server_of(address) > 1
    assert watch.seconds < 4, "the machine was too slow for this to show anything"
    assert program.wait() == 0
    assert watch.seconds >= 4


@needs_read_only
def test_nothing_is_written_by_whoever_it_is(contain: Contain) -> None:
    """With nothing to write to and a uid without a name, the pool boots, serves, shows itself, reloads and stops with 0."""
    values = {**image_environment(), "PREFORK_LOG_FORMAT": "text"}
    values |= {"PREFORK_BIND": "127.0.0.1:0", "PREFORK_METRICS": "127.0.0.1:0"}
    command = ["-m", "prefork", *json.loads(dict(instructions())["ENTRYPOINT"])[1:], "-w", "2"]
    program = contain(None, READ_ONLY, arguments=command, environ=values)
    metrics = metrics_of(program)
    master = master_of(program)
    assert status_of(master)["Uid"].split() == ["4711"] * 4
    (port,) = {
        int(found[1])
        for line in program.logged("listeners=")
        if (found := re.search(r"tcp://127\.0\.0\.1:(\d+)", line))
    }
    for nth in (1, 2):
        assert '"factors": [3, 5]' in ask(("127.0.0.1", port), "GET /15 HTTP/1.0\r\n\r")
        wait_until(lambda: status_at(metrics, "/readyz") == 200, "a pool that is ready")
        reload(program, master, nth)
    os.kill(master, signal.SIGTERM)
    assert program.wait() == 0
    assert not program.logged("Traceback|Read-only file system")
