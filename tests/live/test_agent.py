"""The agent: what HAProxy hears of a real pool, and what a real HAProxy does with it."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import socket
import statistics
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from tests.support.clients import ask, connect, read_all, send_line
from tests.support.engines import needs, running
from tests.support.ports import free_port
from tests.support.processes import title_of
from tests.support.server import serving
from tests.support.waiting import Stopwatch, wait_until
from tests.support.web import agent_line, agent_of, fetch, metrics_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.clients import Address
    from tests.support.server import Program

PROMPT = 0.02
"""Seconds within which the agent answers, whatever the load: the promise, for the median of some tries."""

FREE = "127.0.0.1:0"


def test_agent_follows_the_pool(start: Callable[..., Program]) -> None:
    """The agent says how many workers take requests, promptly with a full pool and a stopped master, and drain from TERM on."""
    program = start(
        serving(
            "Run",
            workers=2,
            metrics_address=FREE,
            agent_address=FREE,
            drain_delay=1.0,
            graceful_timeout=5,
        )
    )
    pool, agent = program.address(), agent_of(program).address
    assert agent_line(agent) == "ready up 100% maxconn:2"
    assert json.loads(fetch(metrics_of(program).address, "/status").body)["agent"] == (
        f"127.0.0.1:{agent[1]}"
    )
    with connect(pool) as one, connect(pool) as two:
        for client in (one, two):
            send_line(client, "self.rfile.readline()")
        wait_until(lambda: is_full(program), "both workers are busy")
        program.signal(signal.SIGSTOP)
        assert median_latency(agent) < PROMPT
        assert agent_line(agent) == "ready up 100% maxconn:2"
        program.signal(signal.SIGCONT)
        program.signal(signal.SIGTTIN)
        wait_until(lambda: agent_line(agent) == "ready up 100% maxconn:3", "the third worker")
        program.terminate()
        wait_until(lambda: agent_line(agent) == "drain", "the pool drains")
        for client in (one, two):
            send_line(client, "")
            assert read_all(client)
    assert program.wait() == 0


def is_full(program: Program) -> bool:
    """Return whether every worker is busy."""
    return fetch(metrics_of(program).address).value('prefork_workers{state="busy"}') == 2


def median_latency(address: Address) -> float:
    """Return the median of the seconds that a line takes."""
    seconds = []
    for _ in range(20):
        watch = Stopwatch()
        agent_line(address)
        seconds.append(watch.seconds)
    return statistics.median(seconds)


def test_agent_alone(start: Callable[..., Program], tmp_path: Path) -> None:
    """Without metrics the agent has the process for itself, on a path too; over a reload each client gets its line; nothing is left."""
    path = str(tmp_path / "agent")
    program = start(serving("Run", workers=1, agent_address=f"unix:{path}", agent_mode="weight"))
    program.address()
    line = program.wait_logged(r"metrics pid=\d+ ready")[0]
    assert f"agent=unix:{path}" in line
    pid = int(line.partition("pid=")[2].split()[0])
    assert title_of(pid) == f"prefork: metrics agent unix:{path}"
    assert agent_line(path) == "ready up 100%"
    with open(f"/proc/{pid}/maps", encoding="utf-8") as maps:
        assert "psutil" not in maps.read()
    with asking_again_and_again(path) as lines:
        program.signal(signal.SIGHUP)
        program.wait_logged("master reloaded")
        program.wait_logged(r"metrics pid=\d+ ready", times=2)
    assert all(line.startswith("ready up ") for line in lines), lines
    wait_until(lambda: agent_line(path) == "ready up 100%", "the agent of the new code")
    assert program.stop() == 0
    assert not os.path.exists(path)


@contextlib.contextmanager
def asking_again_and_again(address: Address) -> Iterator[list[str]]:
    """Ask the agent for the length of a block; give the lines, ``""`` for a client that got none."""
    lines: list[str] = []
    ended = threading.Event()

    def ask_on() -> None:
        while not ended.wait(0.01):
            try:
                lines.append(agent_line(address))
            except (OSError, AssertionError):
                lines.append("")

    asker = threading.Thread(target=ask_on)
    asker.start()
    try:
        yield lines
    finally:
        ended.set()
        asker.join()


REFUSED = (
    ({"agent_address": "nonsense"}, "SettingsError", "agent = 'nonsense'"),
    ({"agent_address": "TAKEN", "metrics_address": "TAKEN"}, "BindError", "(metrics)"),
    ({"agent_address": "TAKEN", "metrics_address": FREE}, "BindError", "(agent)"),
    ({"agent_mode": "percent"}, "SettingsError", "one of maxconn, weight"),
    ({"agent_address": FREE, "threads": True}, "SettingsError", "weight for this server"),
)
"""Class attributes, and how a start with them is refused. threads stands for ThreadingMixIn, TAKEN for an address that is in use."""


def test_what_cannot_be_is_refused(start: Callable[..., Program]) -> None:
    """An address that cannot be had, and a mode that the server cannot keep, are refused before any fork; nothing stays open."""
    program = start(f"""
        from tests.support.app import *
        import prefork, socketserver

        taken = socket.create_server(("127.0.0.1", 0))
        os.register_at_fork(before=lambda: tell("forked"))

        def outcome(members):
            bases = (socketserver.ThreadingMixIn,) * members.pop("threads", False)
            for name in members:
                members[name] = members[name].replace("TAKEN", "127.0.0.1:%d" % taken.getsockname()[1])
            Server = type("Server", (prefork.PreForkingMixIn, *bases, socketserver.TCPServer), {{"workers": 1, **members}})
            with Server(LOOPBACK, Echo) as server:
                held = len(os.listdir("/proc/self/fd"))
                try:
                    server.serve_forever()
                except Exception as error:
                    return type(error).__name__, str(error), len(os.listdir("/proc/self/fd")) - held

        tell("refused", [outcome(members) for members in {[one[0] for one in REFUSED]!r}])
    """)
    for (members, error, words), (name, text, leaked) in zip(
        REFUSED, program.told("refused"), strict=True
    ):
        assert (name, leaked) == (error, 0), members
        assert words in text, members
    assert program.all_told("forked") == []


HAPROXY = """
global
    stats socket {folder}/admin level admin
defaults
    mode tcp
    timeout connect 5s
    timeout client 30s
    timeout server 30s
    timeout queue 30s
listen pool
    bind 127.0.0.1:{front}
    server one 127.0.0.1:{pool} {first} check inter 200ms agent-check agent-addr 127.0.0.1 agent-port {agent} agent-inter 50ms
"""


class Admin:
    """What HAProxy says of the one server of its backend, over its socket."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "admin"
        # HAProxy gives the file its name before it listens.
        wait_until(self._answers, "HAProxy's own socket")

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(str(self.path)) == 0

    def says(self) -> dict[str, str]:
        """Return the columns of the server in HAProxy's statistics; ``qcur`` is that of the whole backend."""
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(self.path))
            send_line(client, "show stat pool 6 -1")
            lines = read_all(client).removeprefix("# ").splitlines()
        rows = {row["svname"]: row for row in csv.DictReader(lines)}
        return {**rows["one"], "qcur": rows["BACKEND"]["qcur"]}

    def wait(self, **wanted: str) -> None:
        """Wait until these columns have these values."""
        wait_until(
            lambda: wanted.items() <= self.says().items(),
            lambda: f"HAProxy says {wanted}; last: { {key: self.says()[key] for key in wanted} }",
        )


def read_and_close(client: socket.socket) -> str:
    """Return what a client is answered, and close its side, too."""
    with client:
        return read_all(client)


def test_haproxy_follows(start: Callable[..., Program], tmp_path: Path) -> None:
    """A real HAProxy learns how much the pool takes, queues the rest itself, follows TTIN and the end, and loses no request."""
    haproxy = needs("haproxy")
    port, front = free_port(), free_port()
    go = tmp_path / "go"
    program = start(f"""
        from tests.support.app import *

        def worker_init(self, worker):
            while not os.path.exists({str(go)!r}):
                time.sleep(0.01)

        serve(Run, address=("127.0.0.1", {port}), workers=2, agent_address="127.0.0.1:0",
              drain_delay=2.0, worker_init=worker_init)
    """)
    agent = agent_of(program).address
    config = tmp_path / "haproxy.cfg"
    config.write_text(
        HAPROXY.format(folder=tmp_path, front=front, pool=port, agent=agent[1], first="maxconn 1")
    )
    with running([haproxy, "-db", "-f", str(config)], tmp_path, front):
        admin = Admin(tmp_path)
        admin.wait(status="DOWN (agent)", last_agt="via agent : down (no worker is ready)")
        go.touch()
        admin.wait(status="UP", slim="2")
        with contextlib.ExitStack() as held:
            clients = [held.enter_context(connect(("127.0.0.1", front))) for _ in range(5)]
            for client in clients:
                send_line(client, "self.rfile.readline()")
            admin.wait(scur="2", qcur="3")
            program.signal(signal.SIGTTIN)
            admin.wait(slim="3", scur="3", qcur="2")
            for client in clients:
                send_line(client, "")
            # All at once: HAProxy counts a connection until both sides have closed, and it does not
            # promise that the first of these clients are those that were served first.
            with ThreadPoolExecutor(len(clients)) as readers:
                answers = [*readers.map(read_and_close, clients)]
            assert all(answer.endswith("'\\n'") for answer in answers)
        assert ask(("127.0.0.1", front), "6 * 7").endswith(" 42")
        program.terminate()
        admin.wait(status="DRAIN (agent)")
        assert program.wait() == 0
    admin.path.unlink()


def test_haproxy_weighs(start: Callable[..., Program], tmp_path: Path) -> None:
    """A real HAProxy gives a pool the weight of its idle share: all, about half, and never nothing while the pool is up."""
    haproxy = needs("haproxy")
    program = start(serving("Run", workers=2, agent_address=FREE, agent_mode="weight"))
    pool, agent, front = program.address(), agent_of(program).address, free_port()
    config = tmp_path / "haproxy.cfg"
    config.write_text(
        HAPROXY.format(
            folder=tmp_path, front=front, pool=pool[1], agent=agent[1], first="weight 100"
        )
    )
    with running([haproxy, "-db", "-f", str(config)], tmp_path, front):
        admin = Admin(tmp_path)
        admin.wait(status="UP", weight="100")
        with connect(pool):
            wait_until(lambda: 40 <= int(admin.says()["weight"]) <= 60, "about half of the weight")
            with connect(pool):
                admin.wait(status="UP", weight="1")
        admin.wait(status="UP", weight="100")
    admin.path.unlink()
