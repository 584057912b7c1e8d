"""What handlers count with prometheus_client: merged by slot, never falling, in a bounded number of files."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import signal
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.clients import ask, hangs_up
from tests.support.processes import is_alive, live_children_of, title_of
from tests.support.waiting import CEILING, Stopwatch, let_pass, wait_until
from tests.support.web import Answer, fetch, metrics_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.clients import Address
    from tests.support.server import Program

APPLICATION = """
from tests.support.app import *
import prefork
from prefork.metrics import slots

slots.enable(os.environ.get("DIRECTORY"))

from prometheus_client import Counter, Gauge, Histogram

SEEN = Counter("shop_requests", "Requests.", ["kind"])
TOOK = Histogram("shop_seconds", "Durations.", buckets=(0.1, 1))
LIVE = Gauge("shop_live", "Workers that have served.", multiprocess_mode="livesum")
LAST = Gauge("shop_last", "What the last request brought.", multiprocess_mode="max")


class Counting(prefork.StreamRequestHandler):
    def handle(self):
        if line := self.rfile.readline().decode():
            SEEN.labels("all").inc()
            TOOK.observe(0.01)
            LIVE.set(1)
            self.wfile.write(f"{os.getpid()} {eval(line)!r}".encode())


def in_fork(kind, before_end=lambda: None):
    pid = os.fork()
    if pid == 0:
        SEEN.labels(kind).inc()
        before_end()
        os._exit(0)
    return pid

"""

SERVE = """
serve(Counting, workers=2, max_children=4, metrics_address="127.0.0.1:0", graceful_timeout=2)
"""

PATTERN = re.compile(r"(counter|histogram|summary|gauge_[a-z]+)_([^_]+)\.db")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Return an empty directory for the files."""
    path = tmp_path / "metrics"
    path.mkdir()
    return path


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """Give an empty directory for the files that other users can reach and read.

    It is not in pytest's folder. Every pytest that starts closes that one to other users again, and the CI runs several.
    """
    with tempfile.TemporaryDirectory(prefix="prefork-metrics-") as folder:
        Path(folder).chmod(0o755)
        path = Path(folder, "metrics")
        path.mkdir(mode=0o755)
        yield path


def files(directory: Path) -> dict[str, set[str]]:
    """Return the types of files by whose they are."""
    found: dict[str, set[str]] = {}
    for name in os.listdir(directory):
        match = PATTERN.fullmatch(name)
        if match:
            found.setdefault(match[2], set()).add(match[1])
    return found


def workers_of(program: Program) -> set[int]:
    """Return the pids of the live children that are workers."""
    return {pid for pid in live_children_of(program.pid) if "worker" in title_of(pid)}


def seen(answer: Answer, kind: str = "all") -> float:
    """Return the application's counter."""
    sample = f'shop_requests_total{{kind="{kind}"}}'
    return answer.value(sample) if f"\n{sample} " in answer.text else 0


def wait_counted(address: Address, requests: int) -> None:
    """Wait until the pool has counted this many good requests: it does so after it has closed them."""
    ok = 'prefork_requests_total{outcome="ok"}'
    wait_until(
        lambda: fetch(address).value(ok) == requests,
        lambda: f"{requests} requests, there are {fetch(address).value(ok)}",
    )


@pytest.fixture
def shop(start: Callable[..., Program], directory: Path) -> Program:
    """Return a program whose handlers count."""
    return start(APPLICATION + SERVE, environ={"DIRECTORY": str(directory)})


# --- merged


def test_what_handlers_count_is_merged(shop: Program, directory: Path) -> None:
    """Counters, histograms and gauges of all workers are one on /metrics, beside the pool's own; a filter names them."""
    pool = shop.address()
    served: list[str] = []

    def both_have_served() -> bool:
        served.append(ask(pool, "1").split()[0])
        return len(set(served)) == 2

    wait_until(both_have_served, "both workers serve")
    requests = len(served)
    address = metrics_of(shop).address
    wait_counted(address, requests)

    answer = fetch(address)

    assert answer.value('shop_requests_total{kind="all"}') == requests
    assert answer.value("shop_seconds_count") == requests
    assert answer.value('shop_seconds_bucket{le="0.1"}') == requests
    assert answer.value("shop_live") == 2
    assert files(directory).keys() == {"m", "0", "1"}
    named = fetch(address, "/metrics?name[]=shop_requests_total")
    assert [line for line in named.text.splitlines() if line[0] != "#"] == [
        f'shop_requests_total{{kind="all"}} {requests}.0'
    ]


def test_master_counts_too(start: Callable[..., Program], directory: Path) -> None:
    """What the master itself counts, before and while it serves, is added."""
    source = """
SEEN.labels("master").inc(2)

def when_ready(self):
    announce(self)
    SEEN.labels("master").inc(3)

serve(Counting, workers=1, metrics_address="127.0.0.1:0", when_ready=when_ready)
"""
    program = start(APPLICATION + source, environ={"DIRECTORY": str(directory)})
    ask(program.address(), "SEEN.labels('master').inc(10)")
    assert seen(fetch(metrics_of(program).address), "master") == 15


def test_variable_names_the_directory(start: Callable[..., Program], directory: Path) -> None:
    """Where PROMETHEUS_MULTIPROC_DIR is set it needs no other word, and the files are by slot all the same."""
    environ = {"PROMETHEUS_MULTIPROC_DIR": str(directory)}
    program = start(APPLICATION + SERVE, environ=environ)
    ask(program.address(), "1")
    assert seen(fetch(metrics_of(program).address)) == 1
    assert files(directory).keys() <= {"m", "0", "1"}


def test_without_a_directory_nothing_changes(start: Callable[..., Program]) -> None:
    """Without setting and variable the application's metrics stay in their process."""
    program = start(APPLICATION + SERVE)
    ask(program.address(), "1")
    address = metrics_of(program).address
    wait_counted(address, 1)
    assert "shop_" not in fetch(address).text


def test_command_line_prepares_the_application(
    start: Callable[..., Program], directory: Path, tmp_path: Path
) -> None:
    """With --metrics-dir an application that knows nothing of it is counted by slot: the way is made before it is loaded."""
    (tmp_path / "app.py").write_text(
        "from tests.support.app import *\n"
        "from prometheus_client import Counter\n"
        "SEEN = Counter('shop_requests', 'Requests.', ['kind'])\n"
        "class Counting(Echo):\n"
        "    def handle(self):\n"
        "        SEEN.labels('all').inc()\n"
        "        super().handle()\n"
    )
    arguments = ["-m", "prefork", "run", "app.py:Counting", "-b", "127.0.0.1:0", "-w", "1"]
    arguments += ["--metrics", "127.0.0.1:0", "--metrics-dir", str(directory)]
    program = start(None, arguments=arguments)
    line = program.wait_logged(r"listeners=tcp://")[0]
    port = int(re.findall(r"tcp://127\.0\.0\.1:(\d+)", line)[0])
    found = metrics_of(program)
    ask(("127.0.0.1", port))
    assert seen(fetch(found.address)) == 1
    assert files(directory).keys() <= {"m", "0"}
    assert not program.logged("made before")
    assert program.stop() == 0


# --- deaths


def test_totals_survive_a_storm_of_kills(shop: Program, directory: Path) -> None:
    """Workers killed with -9 again and again: no total falls, none that was answered is lost, no file is added."""
    pool = shop.address()
    observer, address = metrics_of(shop)
    ask(pool, "1")
    totals, kills = [1.0], 0
    stop, answered = threading.Event(), [1]

    def keep_asking() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError):
                answered[0] += bool(ask(pool, "1"))

    client = threading.Thread(target=keep_asking)
    client.start()
    try:
        watch = Stopwatch()
        while watch.seconds < 2 or kills <= 10 or answered[0] <= 20:
            assert watch.seconds < CEILING
            for victim in sorted(live_children_of(shop.pid) - {observer})[:1]:
                os.kill(victim, signal.SIGKILL)
                kills += 1
            totals.append(seen(fetch(address)))
            let_pass(0.02)
    finally:
        stop.set()
        client.join()
    wait_until(lambda: len(workers_of(shop)) == 2, "two workers")

    totals.append(seen(fetch(address)))
    assert kills > 10
    assert totals == sorted(totals)
    assert answered[0] > 20
    assert totals[-1] >= answered[0]
    assert len(os.listdir(directory)) <= (4 + 1) * 4 + 2
    assert set(files(directory)) <= {"m", "0", "1", "2", "3"}


def test_gauges_of_the_living_go_with_their_worker(shop: Program, directory: Path) -> None:
    """A gauge of a live mode forgets a worker that died, before the next one has its slot; counters do not."""
    pool = shop.address()
    address = metrics_of(shop).address
    served: list[int] = []

    def both_have_set_it() -> bool:
        served.append(int(ask(pool, "LAST.set(7)").split()[0]))
        return len(set(served)) == 2

    wait_until(both_have_set_it, "both workers serve")
    pids = set(served)
    assert fetch(address).value("shop_live") == 2

    os.kill(min(pids), signal.SIGKILL)
    wait_until(lambda: len(workers_of(shop) - pids) == 1, "another worker")

    wait_until(lambda: fetch(address).value("shop_live") == 1, "one of the first is left")
    answer = fetch(address)
    assert answer.value("shop_last") == 7
    assert seen(answer) == len(served)


# --- processes that workers fork


def test_forks_of_handlers_count_in_files_of_their_own(shop: Program, directory: Path) -> None:
    """A hundred processes that handlers fork one after the other count exactly, and leave one file, not a hundred."""
    pool = shop.address()
    address = metrics_of(shop).address
    for _ in range(10):
        ask(pool, "[os.waitpid(in_fork('fork'), 0) for _ in range(10)]")

    answer = fetch(address)

    assert seen(answer, "fork") == 100
    assert seen(answer) == 10
    forks = {owner for owner in files(directory) if "f" in owner}
    assert len(forks) == 1


def test_forks_at_once_do_not_share_a_file(shop: Program, directory: Path) -> None:
    """Forked processes that live at the same time have a file each, which the next ones go on with."""
    pool = shop.address()
    address = metrics_of(shop).address
    crowd = (
        "(lambda gate, opener: ["
        "pids := [in_fork('fork', lambda: os.read(gate, 1)) for _ in range(5)], "
        "os.write(opener, bytes(5)), [os.waitpid(pid, 0) for pid in pids], "
        "os.close(gate), os.close(opener)])(*os.pipe())"
    )
    # On a busy machine the first of a crowd may have ended before the last one begins.
    crowds, owners = 0, set[str]()
    while crowds < 2 or (len(owners) < 5 and crowds < 10):
        ask(pool, crowd)
        crowds += 1
        owners = {owner for owner in files(directory) if "f" in owner}
    assert seen(fetch(address), "fork") == 5 * crowds
    assert len(owners) == 5


def test_forks_of_forks_count(shop: Program) -> None:
    """A process that a forked process forks counts for itself, too."""
    ask(shop.address(), "os.waitpid(in_fork('fork', lambda: os.waitpid(in_fork('deep'), 0)), 0)")
    answer = fetch(metrics_of(shop).address)
    assert (seen(answer, "fork"), seen(answer, "deep")) == (1, 1)


# --- the directory


def refused(start: Callable[..., Program], directory: object, extra: str = "") -> str:
    """Return why the start was refused with this directory; nothing was forked by then."""
    program = start(
        f"""
        from tests.support.app import *
        import prefork
        {extra}

        class Server(prefork.PreForkingTCPServer):
            workers = 1
            metrics_dir = {str(directory)!r}

        os.register_at_fork(before=lambda: tell("forked"))
        with Server(LOOPBACK, Echo) as server:
            try:
                server.serve_forever()
            except prefork.SettingsError as error:
                tell("refused", str(error))
        tell("end")
        """
    )
    program.told("end")
    assert program.all_told("forked") == []
    return str(program.told("refused"))


def test_missing_directory_is_refused(start: Callable[..., Program], tmp_path: Path) -> None:
    """A directory that is not there, or is none, is refused by name before anything is forked."""
    assert "there is no such directory" in refused(start, tmp_path / "nothing")
    (tmp_path / "file").touch()
    assert "that is no directory" in refused(start, tmp_path / "file")


def test_directory_that_cannot_be_written_is_refused(
    start: Callable[..., Program], open_directory: Path
) -> None:
    """A directory of somebody else is refused with what to do about it."""
    open_directory.chmod(0o555)
    become_another = (
        "'a'.encode('idna'); os.setresuid(65534, 65534, 65534) if os.geteuid() == 0 else None"
    )
    assert "change its owner or mode" in refused(start, open_directory, become_another)


def test_full_directory_is_refused(start: Callable[..., Program], directory: Path) -> None:
    """Where there is no room for the files of all slots, which would kill workers later on, the start is refused."""
    too_small = """
        room = os.statvfs("/")
        os.statvfs = lambda path: type(room)([*room[:4], 10, *room[5:]])
    """
    assert "lower max_children or make room" in refused(start, directory, too_small.strip())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give workers another identity")
def test_workers_of_another_user_must_be_able_to_write(
    start: Callable[..., Program], open_directory: Path
) -> None:
    """Workers that may not write there end the start with a word on it; where they may, they count."""
    source = APPLICATION + SERVE.replace(
        "workers=2", "workers=2, run_as_user='nobody', umask=0o077"
    )
    program = start(source, environ={"DIRECTORY": str(open_directory)})
    assert program.wait() != 0
    assert "cannot be written to by the workers' user" in program.log

    os.chown(open_directory, pwd.getpwnam("nobody").pw_uid, -1)
    program = start(source, environ={"DIRECTORY": str(open_directory)})
    ask(program.address(), "os.waitpid(in_fork('fork'), 0)")
    answer = fetch(metrics_of(program).address)
    assert (seen(answer), seen(answer, "fork")) == (1, 1)


def test_only_the_start_of_a_master_empties_it(
    start: Callable[..., Program], directory: Path
) -> None:
    """What an earlier master has left is gone, other files stay; serving again and exec in place keep the totals."""
    (directory / "counter_77.db").write_bytes(b"old")
    (directory / "app.db").write_bytes(b"somebody's data")
    source = """
class Server(prefork.PreForkingTCPServer):
    workers, max_children, metrics_address, when_ready = 1, 2, "127.0.0.1:0", announce

log_to_stderr()
for _ in range(2):
    with Server(LOOPBACK, Counting) as server:
        server.serve_forever()
if "again" not in sys.argv:
    os.execv(sys.executable, [sys.executable, *sys.argv, "again"])
"""
    program = start(APPLICATION + source, environ={"DIRECTORY": str(directory)})
    for turn in range(4):
        ask(program.address(turn), "1")
        assert seen(fetch(metrics_of(program, turn).address)) == turn + 1
        assert (directory / "app.db").read_bytes() == b"somebody's data"
        assert not (directory / "counter_77.db").exists()
        program.terminate()
    assert program.wait() == 0

    fresh = start(APPLICATION + SERVE, environ={"DIRECTORY": str(directory)})
    fresh.address()
    assert seen(fetch(metrics_of(fresh).address)) == 0


def test_directory_of_a_live_master_is_left_alone(
    shop: Program, start: Callable[..., Program], directory: Path
) -> None:
    """A second master is refused by the pid of the first, a mere import of the application writes nothing; after kill -9 the directory is free."""
    ask(shop.address(), "1")
    address = metrics_of(shop).address
    before = sorted(os.listdir(directory))
    environ = {"DIRECTORY": str(directory)}

    trial = start(APPLICATION + "SEEN.labels('trial').inc()\ntell('end')", environ=environ)
    trial.told("end")
    second = start(APPLICATION + SERVE, environ=environ)
    assert second.wait() != 0
    assert f"the master with pid {shop.pid} uses it" in second.log

    assert sorted(os.listdir(directory)) == before
    assert (seen(fetch(address)), seen(fetch(address), "trial")) == (1, 0)

    children = live_children_of(shop.pid)
    shop.signal(signal.SIGKILL)
    shop.wait()
    third = start(APPLICATION + SERVE, environ=environ)
    ask(third.address(), "1")
    assert seen(fetch(metrics_of(third).address)) == 1
    wait_until(lambda: not any(map(is_alive, children)), "the orphans gone")


# --- the application


def test_metrics_made_too_early_are_named(start: Callable[..., Program], directory: Path) -> None:
    """Metrics that exist before the way is made are told by name; later ones are merged."""
    source = APPLICATION.replace(
        "slots.enable(",
        "import prometheus_client\nprometheus_client.Counter('early', 'Too early.')\nslots.enable(",
    )
    program = start(source + SERVE, environ={"DIRECTORY": str(directory)})
    ask(program.address(), "1")
    (line,) = program.wait_logged("were made before")
    assert "metrics=early" in line
    assert seen(fetch(metrics_of(program).address)) == 1


def test_master_has_no_library_that_its_application_has_not(
    start: Callable[..., Program], directory: Path
) -> None:
    """Where only the workers import prometheus_client, their metrics are merged and the master goes without."""
    program = start(
        """
        from tests.support.app import *
        import prefork

        def worker_init(self, worker):
            from prometheus_client import Counter
            self.seen = Counter("shop_requests", "Requests.", ["kind"])

        def service_actions(self):
            self.collect_children()
            tell("loaded", "prometheus_client" in sys.modules)

        serve(Run, workers=1, metrics_address="127.0.0.1:0", worker_init=worker_init,
              metrics_dir=os.environ["DIRECTORY"], service_actions=service_actions)
        """,
        environ={"DIRECTORY": str(directory)},
    )
    ask(program.address(), "self.server.seen.labels('all').inc()")
    assert seen(fetch(metrics_of(program).address)) == 1
    assert not any(program.all_told("loaded"))
    assert files(directory) == {"0": {"counter"}}


def test_name_of_the_pools_own_is_not_doubled(
    start: Callable[..., Program], directory: Path
) -> None:
    """A metric of the application that bears a name of the pool's does not spoil the scrape: the pool's stays."""
    program = start(
        APPLICATION
        + "Gauge('prefork_workers_target', 'Mine.', multiprocess_mode='max').set(99)"
        + SERVE,
        environ={"DIRECTORY": str(directory)},
    )
    program.address()
    assert fetch(metrics_of(program).address).value("prefork_workers_target") == 2


def test_broken_file_costs_the_users_metrics_only(shop: Program, directory: Path) -> None:
    """With a file that cannot be read /metrics has the pool's own, and the log one word on the rest; an empty file is nothing."""
    ask(shop.address(), "1")
    address = metrics_of(shop).address
    wait_counted(address, 1)
    (directory / "counter_3.db").touch()
    assert seen(fetch(address)) == 1
    (directory / "counter_3.db").write_bytes((1000).to_bytes(8, "little") + b"\xff" * 992)
    for _ in range(5):
        answer = fetch(address)
        assert answer.status == 200
        assert "shop_" not in answer.text
        assert answer.value('prefork_requests_total{outcome="ok"}') == 1
    assert len(shop.wait_logged("cannot answer in full")) == 1
    (directory / "counter_3.db").unlink()
    assert seen(fetch(address)) == 1


def test_two_pools_of_a_program_do_not_share_slots(
    start: Callable[..., Program], directory: Path
) -> None:
    """Two pools of one program write into files of their own and count exactly."""
    source = """
class Server(prefork.PreForkingTCPServer):
    workers, max_children, metrics_address, when_ready = 1, 3, "127.0.0.1:0", announce

log_to_stderr()
with Server(LOOPBACK, Counting) as one, Server(LOOPBACK, Counting) as two:
    thread = threading.Thread(target=one.serve_forever)
    thread.start()
    while not one.active_children:
        time.sleep(0.01)
    two.serve_forever()
    one.shutdown()
    thread.join()
"""
    program = start(APPLICATION + source, environ={"DIRECTORY": str(directory)})
    pools = [program.address(), program.address(1)]
    threads = [
        threading.Thread(target=lambda pool=pool: [ask(pool, "1") for _ in range(50)])
        for pool in pools
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen(fetch(metrics_of(program).address)) == 100
    assert files(directory).keys() == {"m", "0", "3"}
    assert hangs_up(pools[0], "1")
