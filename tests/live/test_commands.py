"""The commands for a running pool: how they find it, what they print, what they change."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import termios
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.clients import send
from tests.support.load import Load
from tests.support.processes import children_of, is_alive
from tests.support.server import environment, serving
from tests.support.terminal import ENTERS, LEAVES, SHOWS_CURSOR, Terminal
from tests.support.waiting import Stopwatch, wait_until
from tests.support.web import agent_line, agent_of, metrics_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.server import Program

PATIENCE = 30.0
"""Seconds that one command may take in a test: an interpreter starts slowly on a loaded machine."""


class Done:
    """A command that has ended: its exit code and its output."""

    def __init__(self, ended: subprocess.CompletedProcess[str]) -> None:
        self.code, self.out, self.err = ended.returncode, ended.stdout, ended.stderr

    def __repr__(self) -> str:
        return f"exit {self.code}\n{self.out}\n{self.err}"


def prefork(*arguments: object, before: tuple[str, ...] = ()) -> Done:
    """Run one command of the command line to its end."""
    command = [*before, sys.executable, "-m", "prefork", *map(str, arguments)]
    return Done(
        subprocess.run(
            command,
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    )


def status_of(program: Program) -> dict[str, Any]:
    """Return the output of ``prefork status --json``."""
    said: dict[str, Any] = json.loads(prefork("status", program.pid, "--json").out)
    return said


@pytest.fixture
def pool(start: Callable[..., Program]) -> Callable[..., Program]:
    """``pool(handler, **attributes)`` starts a pool and returns when it is ready."""

    def start_pool(handler: str = "TellingRun", **members: object) -> Program:
        program = start(serving(handler, **{"workers": 2, "max_children": 6, **members}))
        program.address()
        return program

    return start_pool


@contextlib.contextmanager
def suspended(program: Program) -> Any:
    """Suspend the master's process for the body, as a debugger does."""
    program.signal(signal.SIGSTOP)
    try:
        wait_until(lambda: "T" in state_of(program.pid), "a master that is stopped")
        yield
    finally:
        program.signal(signal.SIGCONT)


def state_of(pid: int) -> str:
    """Return the letter of the state of a process."""
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


def is_pending(number: signal.Signals, pid: int) -> bool:
    """Return whether a signal is pending for a process."""
    with open(f"/proc/{pid}/status") as file:
        (shared,) = [line.split()[1] for line in file if line.startswith("ShdPnd:")]
    return bool(int(shared, 16) & 1 << number - 1)


# --- finding


def test_pool_is_found_by_pid_and_by_name(pool: Callable[..., Program]) -> None:
    """A pool is found by its pid and by its name."""
    name = f"shop-{os.getpid()}"
    program = pool(pool_name=name)
    by_pid, by_name = prefork("status", program.pid), prefork("status", name)
    by_flag = prefork("status", "--name", name)
    assert [done.code for done in (by_pid, by_name, by_flag)] == [0, 0, 0], by_name
    first = [done.out.splitlines()[0] for done in (by_pid, by_name, by_flag)]
    assert first == [f"prefork {name}: serving, ready"] * 3


def test_several_pools_are_listed(pool: Callable[..., Program]) -> None:
    """Several pools without a name end with exit code 2 and a list of pids, names and listeners."""
    one, other = pool(pool_name="one"), pool(pool_name="other")
    done = prefork("status")
    assert (done.code, done.out) == (2, "")
    assert "several pools are running; name one of them by its pid or name:" in done.err
    for program, name in ((one, "one"), (other, "other")):
        port = program.address()[1]
        assert re.search(
            rf"^ +{program.pid}  {name} +tcp://127\.0\.0\.1:{port}$", done.err, re.MULTILINE
        )


def test_what_is_no_pool(pool: Callable[..., Program]) -> None:
    """A worker, another process, a missing process and an unknown name each have a message and exit code 2, for every command."""
    program = pool()
    for asked, message in (
        (program.worker(), f"belongs to a pool; its master is {program.pid}"),
        (os.getpid(), f"process {os.getpid()} is not the master of a pool"),
        (2**22 + 7, "there is no process 4194311"),
        ("nobody", "no running pool is called nobody; these are running:"),
    ):
        done = prefork("status", asked)
        assert (done.code, done.out) == (2, "")
        assert message in done.err
        assert "Traceback" not in done.err
    for command in ("scale +1", "reload", "upgrade", "dump", "stop"):
        assert prefork(*command.split(), "nobody").code == 2


def test_master_of_another_user(pool: Callable[..., Program]) -> None:
    """The error for a pool of another user names that user, and the pool is not touched."""
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    program = pool()
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    if prefork("--version", before=nobody).code:
        pytest.skip("another user cannot read this environment")
    for command in (["status"], ["stop"], ["scale", "3"], ["dump"]):
        done = prefork(*command, program.pid, before=nobody)
        assert (done.code, done.out) == (2, "")
        assert f"this user may not look at process {program.pid} (" in done.err
        assert "), which belongs to root" in done.err
    assert len(program.workers()) == 2


def test_lone_pool_in_a_container(start: Callable[..., Program], tmp_path: Path) -> None:
    """A lone pool in a container is found without a name inside, and by its outer pid outside."""
    if os.getuid() != 0:
        pytest.skip("only root can make a pid namespace")
    source = tmp_path / "pool.py"
    source.write_text(serving("Run", workers=2))
    inside = (
        f"{sys.executable} {source} & until {sys.executable} -m prefork status >status 2>&1; "
        "do sleep 0.1; done; echo '[\"seen\", 1]'; wait"
    )
    namespace = [
        "unshare",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "sh",
        "-c",
        inside,
        "sh",
    ]
    program = start(None, before=namespace)
    program.told("seen", ceiling=PATIENCE)
    said = (tmp_path / "status").read_text()
    assert said.startswith("prefork: serving, ready")
    (inside_pid,) = re.findall(r"pid (\d+)", said)
    (master,) = [pid for pid in descendants(program.pid) if own_pid(pid) == int(inside_pid)]
    assert master != int(inside_pid)
    outside = prefork("status", master)
    assert outside.out.startswith("prefork: serving, ready"), outside
    workers = {child.pid for child in children_of(master)}
    shown = json.loads(prefork("memory", "--json", master).out)["workers"]
    assert {one["pid"] for one in shown} == workers
    assert prefork("stop", master).code == 0


def descendants(pid: int) -> list[int]:
    """Return the pids of all processes below one."""
    below = [child.pid for child in children_of(pid)]
    return below + [one for child in below for one in descendants(child)]


def own_pid(pid: int) -> int:
    """Return the pid by which a process knows itself."""
    with open(f"/proc/{pid}/status") as file:
        (line,) = [line for line in file if line.startswith("NSpid")]
    return int(line.split()[-1])


# --- status


def test_status_agrees_with_the_pool(pool: Callable[..., Program]) -> None:
    """Text and JSON of the status agree with the workers, requests and states of the pool."""
    program = pool()
    with send(program.address(), "(tell('in'), self.rfile.read())") as _:
        program.told("in")
        busy = program.told("busy")
        status = status_of(program)
        text = prefork("status", program.pid).out
    assert status["pid"] == program.pid
    assert {one["pid"] for one in status["slots"] if one["pid"]} == program.workers()
    counted = {key: status["workers"][key] for key in ("floor", "max", "idle", "busy", "ready")}
    assert counted == {"floor": 2, "max": 6, "idle": 1, "busy": 1, "ready": 2}
    assert status["requests"]["in_progress"] == 1
    (slot,) = [one for one in status["slots"] if one["state"] == "busy"]
    assert slot["pid"] == busy
    assert "workers    1 busy, 1 idle (floor 2, target 2, max 6)" in text
    assert re.search(rf"^ +{slot['slot']} +{busy} +0 +busy ", text, re.MULTILINE)
    listener = status["listeners"][0]
    assert listener["name"] == f"tcp://127.0.0.1:{program.address()[1]}"
    assert (listener["depth"], listener["limit"]) == (0, 1024)


def test_status_of_a_pool_that_is_stopping(pool: Callable[..., Program]) -> None:
    """The status of a pool that stops has exit code 1."""
    program = pool()
    with send(program.address(), "(tell('in'), self.rfile.read())"):
        program.told("in")
        program.terminate()
        program.wait_logged("phase changed old=serving new=not_ready")
        done = wait_until(
            lambda: done if (done := prefork("status", program.pid)).code else None,
            "a status that is not ready",
        )
        state = state_of(program.pid)
    assert done.code == 1, (done, state)
    assert done.out.splitlines()[0] in ("prefork: draining", "prefork: not ready")


@pytest.mark.once  # a clock that is read, and ten seconds long
def test_master_that_hangs(pool: Callable[..., Program], tmp_path: Path) -> None:
    """Status and top answer while the master hangs, and after ten seconds without a tick say so with exit code 1.

    The agent never says up then.
    """
    program = pool(agent_address="127.0.0.1:0")
    agent = agent_of(program).address
    with looking(program, tmp_path) as terminal:
        terminal.wait_shown("serving, ready")
        with suspended(program):
            assert prefork("status", program.pid).code == 0
            assert agent_line(agent) == "ready up 100% maxconn:2"
            terminal.wait_shown(r"HUNG for 1\ds \(serving\)", ceiling=PATIENCE)
            done = prefork("status", program.pid)
            assert done.code == 1
            assert re.match(r"prefork: HUNG for 1\ds \(serving\)\n", done.out)
            assert "2 idle" in done.out
            assert re.fullmatch(r"down #the master has not ticked for \d+ s", agent_line(agent))
        terminal.wait_shown("serving, ready")
        terminal.press("q")
        assert terminal.wait() == 0


# --- scale


def test_scale_up_and_down(pool: Callable[..., Program]) -> None:
    """When ``scale`` returns, the new workers are ready or the surplus ones are gone."""
    program = pool()
    for size, count in (("5", 5), ("+1", 6), ("-4", 2), ("2", 2), ("-1", 1)):
        done = prefork("scale", size, program.pid)
        assert (done.code, done.err) == (0, ""), done
        assert done.out.startswith(f"workers to keep: {count} ")
        assert len(program.workers()) == count
    assert status_of(program)["workers"]["floor"] == 1


def test_scale_beyond_the_bounds_sends_nothing(pool: Callable[..., Program]) -> None:
    """A number out of bounds ends with exit code 2, and no signal is sent."""
    program = pool()
    for size in ("7", "0", "+5", "-2", "many"):
        done = prefork("scale", size, program.pid)
        assert (done.code, done.out) == (2, "")
        assert "Invalid value for the number of workers" in done.err
    program.settle()
    assert program.logged("already at its limit|resized") == []
    assert len(program.workers()) == 2


def test_scale_waits_for_requests_in_hand(pool: Callable[..., Program]) -> None:
    """A surplus worker finishes its request, and ``scale`` ends with exit code 1 and the reason if that takes too long."""
    program = pool()
    with (
        send(program.address(), "(tell('in'), self.rfile.read())"),
        send(program.address(), "(tell('in'), self.rfile.read())"),
    ):
        program.told("in", 1)
        done = prefork("scale", "1", program.pid, "--timeout", "300ms")
    assert done.code == 1
    assert ": workers that finish their requests before they leave: 1" in done.err


def test_scale_of_a_master_that_is_stopped(pool: Callable[..., Program]) -> None:
    """``scale`` of a suspended master ends at its timeout with the reason, and works again after SIGCONT."""
    program = pool()
    with suspended(program):
        done = prefork("scale", "4", program.pid, "--timeout", "1500ms")
        assert done.code == 1
        assert (
            f"the master keeps 2 workers, not 4; the master {program.pid} is suspended" in done.err
        )
    assert prefork("scale", "4", program.pid).code == 0
    assert len(program.workers()) == 4


def test_several_scale_at_once(pool: Callable[..., Program]) -> None:
    """Several ``scale`` commands at once run one after the other, and their changes add up."""
    program = pool(max_children=20)
    command = [sys.executable, "-m", "prefork", "scale", "+4", str(program.pid)]
    others = [
        subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE) for _ in range(4)
    ]
    said = [other.communicate(timeout=PATIENCE)[0].decode() for other in others]
    assert len(program.workers()) == 18, said
    assert status_of(program)["workers"]["floor"] == 18
    codes = {other.returncode for other in others}
    assert codes <= {0, 1}  # whose number another one has moved on before its workers were ready
    assert 0 in codes


def test_scale_of_a_pool_that_begins_to_stop(pool: Callable[..., Program]) -> None:
    """``scale`` ends soon with exit code 1 and the reason when the pool begins to stop."""
    program = pool()
    command = [sys.executable, "-m", "prefork", "scale", "4", str(program.pid), "--timeout", "60s"]
    with send(program.address(), "(tell('in'), self.rfile.read())"):
        program.told("in")
        with suspended(program):
            scale = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE)
            wait_until(lambda: is_pending(signal.SIGTTIN, program.pid), "TTIN was sent")
            program.terminate()
        said = scale.communicate(timeout=PATIENCE)[1].decode()
        assert scale.returncode == 1
        assert "the master keeps 2 workers, not 4; the pool is stopping" in said
    assert program.wait() == 0


def test_scale_of_workers_that_cannot_boot(start: Callable[..., Program]) -> None:
    """``scale`` to workers that cannot boot ends with exit code 1 and the number that is ready."""
    source = serving("Run", workers=1).replace("prefork.PreForkingTCPServer", "Fussy")
    program = start(source.replace("import prefork\n", "import prefork\n" + FUSSY))
    program.address()
    done = prefork("scale", "3", program.pid, "--timeout", "1s")
    assert done.code == 1
    assert "1 of 3 workers ready" in done.err


FUSSY = """
class Fussy(prefork.PreForkingTCPServer):
    def worker_init(self, worker):
        if worker.slot:
            raise RuntimeError("no database")
"""


def test_pool_in_a_thread_takes_no_signals(start: Callable[..., Program]) -> None:
    """A pool in a thread handles no signals, so none is sent, and the message names the remedy."""
    program = start(
        "from tests.support.app import *\n"
        "import prefork\n"
        "class Server(prefork.PreForkingTCPServer):\n"
        "    workers, when_ready, fork_check = 2, announce, 'off'\n"
        "server = Server(LOOPBACK, Run)\n"
        "thread = threading.Thread(target=server.serve_forever)\n"
        "thread.start()\n"
        "sys.stdin.read()\n"
        "signal.signal(signal.SIGINT, lambda *_: None)\n"
        "thread.join()\n"
    )
    program.address()
    assert prefork("status", program.pid).code == 0
    for command in (["scale", "3"], ["dump"], ["stop"]):
        done = prefork(*command, program.pid)
        assert done.code == 1
        assert f"the master {program.pid} has no handler for SIG" in done.err
    assert len(program.workers()) == 2


# --- stop


def test_stop_finishes_requests_and_says_so(pool: Callable[..., Program]) -> None:
    """``stop`` returns when the pool has ended, and the request in hand is answered."""
    program = pool()
    with send(program.address(), "(tell('in'), time.sleep(1.5), 'done')[2]") as client:
        program.told("in")
        done = prefork("stop", program.pid)
        assert b"'done'" in client.recv(100)
    assert (done.code, done.err) == (0, ""), done
    assert done.out.startswith(f"stopped: {program.pid} ")
    assert program.wait() == 0


def test_stop_that_takes_too_long(pool: Callable[..., Program]) -> None:
    """A stop that takes too long ends with exit code 1 and the reason, and ``--now`` ends the pool."""
    program = pool()
    with send(program.address(), "(tell('in'), self.rfile.read())"):
        program.told("in")
        done = prefork("stop", program.pid, "--timeout", "500ms")
        assert done.code == 1
        assert "the pool is draining, workers left: 1; --now kills the workers" in done.err
        watch = Stopwatch()
        done = prefork("stop", "--now", program.pid)
        assert done.code == 0, done
        assert watch.seconds < 20
    assert program.wait() == 0


def test_stop_now_of_a_serving_pool(pool: Callable[..., Program]) -> None:
    """``stop --now`` kills the workers of a serving pool in the middle of their requests."""
    program = pool()
    with send(program.address(), "(tell('in'), self.rfile.read())"):
        program.told("in")
        done = prefork("stop", "--now", program.pid)
    assert done.code == 0, done
    assert program.wait() == 0
    assert program.logged("phase changed old=draining new=stopping_now")


def test_stop_of_a_pool_whose_program_goes_on(start: Callable[..., Program]) -> None:
    """``stop`` succeeds when serve_forever() has returned, and says that the program keeps running."""
    program = start(
        serving("Run", workers=1) + "signal.signal(signal.SIGTERM, lambda *_: None)\n"
        "tell('on')\nsignal.pause()\n"
    )
    program.address()
    done = prefork("stop", program.pid)
    assert done.code == 0, done
    assert f"process {program.pid} itself keeps running" in done.out
    program.told("on")
    assert is_alive(program.pid)


# --- dump


def test_dump_prints_the_stacks_of_every_worker(pool: Callable[..., Program]) -> None:
    """``dump`` prints the stacks of each worker by slot and pid, without frames of the master, and the log has them, too."""
    program = pool()
    with send(program.address(), "(tell('in'), self.rfile.read())"):
        program.told("in")
        busy = program.told("busy")
        done = prefork("dump", program.pid)
    assert (done.code, done.err) == (0, ""), done
    heads = re.findall(r"^worker slot=(\d) gen=0 pid=(\d+) (busy|idle)$", done.out, re.MULTILINE)
    assert {int(pid) for _, pid, _ in heads} == program.workers() | {busy}
    (part,) = [part for part in done.out.split("\n\n") if f"pid={busy} busy" in part]
    assert re.search(r'^      File ".*app.py", line \d+ in handle$', part, re.MULTILINE)
    assert "serve_forever" not in done.out
    assert program.wait_logged("master status")


def test_dump_is_of_now(pool: Callable[..., Program]) -> None:
    """``dump`` does not print the stacks of an earlier dump."""
    program = pool(workers=1)
    for number, function in enumerate(("first", "second")):
        define = f"exec('def {function}(handler):\\n handler.rfile.read()')"
        with send(program.address(), f"{define} or tell('in') or locals()['{function}'](self)"):
            program.told("in", number)
            done = prefork("dump", program.pid)
        assert done.code == 0, done
        assert re.search(rf" in {function}$", done.out, re.MULTILINE), done


def test_dump_of_a_stuck_worker_can_be_had_again(pool: Callable[..., Program]) -> None:
    """A worker in one long request answers every ``dump``."""
    program = pool(workers=1)
    with send(program.address(), "(tell('in'), self.rfile.read())"):
        program.told("in")
        for _ in range(3):
            done = prefork("dump", program.pid)
            assert done.code == 0, done
            assert "in readinto" in done.out


def test_dump_of_a_master_that_is_stopped(pool: Callable[..., Program]) -> None:
    """``dump`` of a suspended master ends with exit code 1 and the reason."""
    program = pool()
    with suspended(program):
        done = prefork("dump", program.pid, "--timeout", "1s")
    assert (done.code, done.out) == (1, "")
    assert f"; the master {program.pid} is suspended (" in done.err


# --- top


def looking(
    program: Program, folder: Path, *more: str, size: tuple[int, int] = (80, 24)
) -> Terminal:
    """Start ``prefork top`` for a pool on a terminal of its own."""
    return Terminal(["top", str(program.pid), "-d", "0.2", *more], folder, size)


def assert_clean(terminal: Terminal) -> None:
    """Assert that the terminal is as before: its modes, its first screen, its cursor."""
    assert terminal.modes() == terminal.modes_before
    assert terminal.said.count(ENTERS) == terminal.said.count(LEAVES) == 1
    assert terminal.said.rindex(LEAVES) > terminal.said.rindex(ENTERS)
    assert SHOWS_CURSOR in terminal.said


def test_top_shows_a_pool_under_load(pool: Callable[..., Program], tmp_path: Path) -> None:
    """``top`` shows rates, latencies, letters and rows in 80 columns, updates them, and ends with q."""
    program = pool("Echo", pause=0.01)
    with Load(program.address(), clients=4), looking(program, tmp_path) as terminal:
        screen = terminal.wait_shown(r"\b[1-9][\d.]* +req/s  p50 +\d")
        assert "prefork serving, ready" in screen
        assert f"pid {program.pid}" in screen
        assert "of 2 ready, target 2, max 6" in screen
        assert f"tcp://127.0.0.1:{program.address()[1]}" in screen
        assert re.search(r"slots  [B_]{2} \+ 4 unused", screen)
        for worker in program.workers():
            assert re.search(rf"^ +\d +{worker} +0 [B_]", screen, re.MULTILINE)
        assert all(len(line.rstrip("\r")) <= 80 for line in screen.splitlines())
        victim = program.worker()
        os.kill(victim, signal.SIGKILL)
        terminal.wait_shown("exits +1 killed")
        assert prefork("scale", "4", program.pid).code == 0
        terminal.wait_shown(r"slots  [B_]{4} \+ 2 unused")
        assert not terminal.modes()[3] & termios.ECHO
        assert terminal.modes()[6][termios.VSUSP] == b"\0", (
            "suspended it would leave the other screen"
        )
        terminal.press("q")
        assert terminal.wait() == 0
        assert_clean(terminal)


def test_top_sorts_by_keys_and_follows_the_size(
    pool: Callable[..., Program], tmp_path: Path
) -> None:
    """The keys s and r change the order of ``top``, and its screen follows the size of the terminal."""
    program = pool()
    with looking(program, tmp_path, "--sort", "requests") as terminal:
        terminal.wait_shown("by reqs, largest first")
        terminal.press("r")
        terminal.wait_shown("by reqs, smallest first")
        terminal.press("ss")
        terminal.wait_shown("by busy, largest first")
        terminal.resize(60, 12)
        screen = wait_until(
            lambda: screen if len((screen := terminal.screen).splitlines()) == 12 else "",
            lambda: f"a screen of 12 lines:\n{terminal.screen}",
        )
        assert all(len(line.rstrip("\r")) <= 60 for line in screen.splitlines())
        terminal.press("q")
        assert terminal.wait() == 0


@pytest.mark.parametrize("ending", ["ctrl-c", "term"])
def test_top_leaves_the_terminal_clean(
    pool: Callable[..., Program], tmp_path: Path, ending: str
) -> None:
    """``top`` ends by Ctrl-C and by TERM with exit code 0 and a clean terminal."""
    program = pool()
    with looking(program, tmp_path) as terminal:
        terminal.wait_shown("q quit")
        if ending == "ctrl-c":
            terminal.press("\x03")
        else:
            terminal.popen.terminate()
        assert terminal.wait() == 0
        assert_clean(terminal)
        assert terminal.said.rpartition(SHOWS_CURSOR)[2].strip() in ("", LEAVES)


def test_top_ends_with_its_pool(pool: Callable[..., Program], tmp_path: Path) -> None:
    """When the master is killed, ``top`` ends with a clean terminal, the reason and exit code 1."""
    program = pool()
    with looking(program, tmp_path) as terminal:
        terminal.wait_shown("q quit")
        program.popen.kill()
        assert terminal.wait() == 1
        assert_clean(terminal)
        last = terminal.text.strip().splitlines()[-1]
        assert re.search(r"the pool has ended: \d+ - tcp://127", terminal.text), last


def test_progress_is_shown_on_a_terminal(pool: Callable[..., Program], tmp_path: Path) -> None:
    """A command that waits shows its progress in one line, which is erased at the end."""
    program = pool()
    with send(program.address(), "(tell('in'), self.rfile.read())"):
        program.told("in")
        with Terminal(["stop", str(program.pid), "--timeout", "1s"], tmp_path) as terminal:
            assert terminal.wait() == 1
            assert "\r\x1b[Kthe pool is draining, workers left: 1" in terminal.said
            assert "\r\x1b[Kprefork: error: not stopped within 1 s: " in terminal.said


def test_commands_leave_no_trace_in_the_pool(pool: Callable[..., Program]) -> None:
    """Reading commands leave the descriptors and the log of the master as they were."""
    program = pool()
    program.wait_logged(r"master pid=\d+ ready")
    before = (sorted(os.listdir(f"/proc/{program.pid}/fd")), program.log)
    for _ in range(3):
        assert prefork("status", program.pid).code == 0
    assert (sorted(os.listdir(f"/proc/{program.pid}/fd")), program.log) == before


def test_several_pools_by_their_urls(start: Callable[..., Program], tmp_path: Path) -> None:
    """``status`` and ``top`` show the pools of several machines by their URLs; a host that does not answer is the first row."""
    program = start(serving("Run", workers=2, pool_name="shop", metrics_address="127.0.0.1:0"))
    program.address()
    url = f"http://127.0.0.1:{metrics_of(program).address[1]}"
    one = prefork("status", url)
    assert one.code == 0
    assert "1 of 1 pools ready, 0 of 2 workers busy" in one.out
    with socket.create_server(("127.0.0.1", 0)) as silent:
        nobody = f"127.0.0.1:{silent.getsockname()[1]}"
        with Terminal(["top", "-d", "0.2", url, f"http://{nobody}"], tmp_path) as terminal:
            terminal.wait_shown(r"shop +0/2 +0 +0 .* serving, ready")
            screen = terminal.wait_shown(rf"{nobody} .*no answer: silent")
            assert "1 of 2 pools ready" in screen
            assert screen.index(nobody) < screen.index("shop")
            assert all(len(line.rstrip("\r")) <= 80 for line in screen.splitlines())
            terminal.press("q")
            assert terminal.wait() == 0
            assert_clean(terminal)
        both = prefork("status", url, f"http://{nobody}", "--json")
    assert both.code == 1
    assert [one["need"] for one in json.loads(both.out)] == ["no_answer", "none"]
    assert prefork("status", url, "shop").code == 2
