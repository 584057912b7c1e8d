"""``prefork run --watch``: what is written is served, what is broken is told, and nobody is left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from prefork.workers.scoreboard import PoolField
from tests.support.board import board_of
from tests.support.clients import ask
from tests.support.load import Load
from tests.support.processes import children_of, fds_of, is_alive, process, title_of
from tests.support.server import environment
from tests.support.waiting import let_pass, stays, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.clients import Address
    from tests.support.server import Program

APPLICATION = """
import prefork
from words import WORD


class Handler(prefork.StreamRequestHandler):
    def handle(self):
        if self.rfile.readline():
            self.wfile.write(b"%s %d" % (WORD.encode(), self.server.worker.generation))
"""

pytestmark = pytest.mark.once  # who looks at files; the reloads are test_reload's

ECHO = "tests.support.app:Echo"


class Watched:
    """``prefork run --watch`` with an application that a test rewrites."""

    def __init__(
        self, start: Callable[..., Program], folder: Path, *flags: str, target: str, **how: Any
    ) -> None:
        self.folder = folder
        (folder / "app.py").write_text(APPLICATION)
        self.say("one")
        self.program = start(
            None,
            arguments=["-m", "prefork", "run", target, "-b", "127.0.0.1:0", "--watch", *flags],
            **how,
        )
        self.program.wait_logged(r"master pid=\d+ ready")
        wait_until(
            lambda: "prefork: watcher" in title_of(self.watcher),
            lambda: f"a watcher: {self.program.log}",
        )

    def say(self, word: str) -> None:
        """Change the module that the application imports."""
        (self.folder / "words.py").write_text(f"WORD = {word!r}\n")

    @property
    def watcher(self) -> int:
        """The pid of the watcher, as the log tells it."""
        (line,) = self.program.wait_logged("watches for changes")
        match = re.search(r"pid=(\d+)", line)
        assert match is not None
        return int(match[1])

    @property
    def address(self) -> Address:
        """Where it listens."""
        match = re.search(r"started listeners=tcp://([\d.]+):(\d+)", self.program.log)
        assert match is not None
        return match[1], int(match[2])

    def wait_served(self, answer: str) -> None:
        """Wait until that is what is served."""
        wait_until(
            lambda: ask(self.address) == answer,
            lambda: f"{answer!r}: {self.program.log[-2000:]}",
        )


@pytest.fixture
def watched(start: Callable[..., Program], tmp_path: Path) -> Callable[..., Watched]:
    """``watched("-w", "2")`` starts such a server."""

    def start_watched(*flags: str, target: str = "app.py:Handler", **how: Any) -> Watched:
        return Watched(start, tmp_path, *(flags or ("-w", "1")), target=target, **how)

    return start_watched


@pytest.mark.parametrize("target", ["app.py:Handler", "app:Handler"])
def test_change_is_served(watched: Callable[..., Watched], target: str) -> None:
    """A changed module of the application is served soon, again and again, by the same process and one watcher."""
    server = watched(target=target)
    watcher = server.watcher
    server.wait_served("one 0")
    for generation, word in enumerate(("two", "three", "four"), start=1):
        server.say(word)
        server.wait_served(f"{word} {generation}")
    assert server.watcher == watcher
    assert is_alive(watcher)
    assert len(server.program.wait_logged("watcher files changed files=words.py")) >= 3
    assert len(server.program.wait_workers(1 + 1)) == 2  # a worker and the watcher


def test_syntax_error_is_survived(watched: Callable[..., Watched]) -> None:
    """Broken code leaves the old one serving and the reason in the log; mended, it is taken over."""
    server = watched()
    with Load(server.address, clients=1) as load:
        (server.folder / "words.py").write_text("WORD = = 1\n")
        server.program.wait_logged("reload failed, still serving the previous code")
        assert "SyntaxError" in server.program.log
        assert ask(server.address) == "one 0"
        server.say("mended")
        server.wait_served("mended 1")
    assert not {"refused", "reset", "late"} & set(load.verdicts)  # it is no echo: "wrong" or "cut"


def test_code_that_fails_only_after_the_exec_is_watched_on(watched: Callable[..., Watched]) -> None:
    """When the trial was good and the run is not, the old workers serve, and mending the file is enough."""
    server = watched()
    source = (
        "from prefork.host.process import process\nWORD = 'bad'\nassert process.handover is None\n"
    )
    (server.folder / "words.py").write_text(source)
    server.program.wait_logged("the new code ended before it served")
    assert ask(server.address) == "one 0"
    server.say("mended")
    server.wait_served("mended 1")
    assert len(server.program.wait_workers(1 + 1)) == 2


def test_settings_file_is_watched(watched: Callable[..., Watched], tmp_path: Path) -> None:
    """A settings file that appears, is replaced as editors do it, or goes, is followed."""
    server = watched("--graceful-timeout", "5s")
    program = server.program
    with board_of(program.pid) as board:
        for floor in (2, 3):
            (tmp_path / "new").write_text(f"workers = {floor}\nmax_children = 40\n")
            (tmp_path / "new").rename(tmp_path / "prefork.toml")
            wait_until(lambda n=floor: board.pool(PoolField.FLOOR) == n, lambda: program.log)
    program.wait_logged("watcher files changed files=prefork.toml")


def test_what_is_no_source_file_is_not_watched(
    watched: Callable[..., Watched], tmp_path: Path
) -> None:
    """Data, caches and logs that an application writes beside its code cause no reload."""
    server = watched()
    (tmp_path / "data.txt").write_text("x")
    (tmp_path / "__pycache__").mkdir(exist_ok=True)
    (tmp_path / "__pycache__" / "words.py").write_text("x")
    stays(lambda: not server.program.logged("reload requested"), "no reload", span=1.5)


def test_many_changes_at_once_are_one_reload(
    watched: Callable[..., Watched], tmp_path: Path
) -> None:
    """A checkout that writes fifty files in half a second is reloaded once, twice where the machine pauses."""
    server = watched()
    for number in range(50):
        (tmp_path / f"module{number}.py").write_text("pass\n")
        let_pass(0.01)  # as long as files of a checkout take
    server.say("all")
    wait_until(lambda: ask(server.address).startswith("all "), lambda: server.program.log)
    asked = "reload requested"
    stays(lambda: len(server.program.logged(asked)) <= 2, "reloads", span=1.0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_stop_leaves_nothing(watched: Callable[..., Watched], number: int) -> None:
    """When the master has ended, after a reload too, the watcher has ended before it and was collected."""
    server = watched()
    watcher = server.watcher
    server.say("two")
    server.wait_served("two 1")
    server.program.signal(number)
    assert server.program.wait() == 0
    assert process(watcher) is None
    server.program.wait_silent()


def test_watcher_ends_with_a_killed_master(watched: Callable[..., Watched]) -> None:
    """A master that is killed with -9 leaves no watcher behind."""
    server = watched()
    watcher = server.watcher
    server.program.popen.kill()
    server.program.wait()
    wait_until(lambda: not is_alive(watcher), "the watcher has ended")


def test_watcher_that_has_died_is_started_anew_by_the_next_reload(
    watched: Callable[..., Watched],
) -> None:
    """A watcher that somebody has killed costs the watching until the next reload, and leaves no zombie then."""
    server = watched()
    first = server.watcher
    os.kill(first, signal.SIGKILL)
    server.program.signal(signal.SIGHUP)
    server.program.wait_logged("watches for changes", times=2)
    assert first not in {child.pid for child in children_of(server.program.pid)}
    match = re.search(r"pid=(\d+)", server.program.logged("watches for changes")[1])
    assert match is not None
    wait_until(lambda: "prefork: watcher" in title_of(int(match[1])), "a watcher")
    server.wait_served("one 1")
    server.say("two")
    server.wait_served("two 2")


def test_watcher_has_nothing_of_the_pool(watched: Callable[..., Watched]) -> None:
    """The watcher holds neither sockets nor the scoreboard, and the master has no thread for it."""
    server = watched()
    held = [
        link for link in fds_of(server.watcher).values() if link.startswith(("socket:", "/memfd"))
    ]
    assert held == []
    master = process(server.program.pid)
    assert master is not None
    assert master.threads == 1


BEFORE_SERVING = """
    from tests.support.app import *
    from prefork.cli.watch import watching

    log_to_stderr()
    with watching(os.getcwd(), []):
        while not os.path.exists("go"):
            time.sleep(0.01)
        signal.signal(signal.SIGHUP, lambda *_: tell("hup"))
        time.sleep(10)
"""


def test_change_before_the_master_takes_signals_kills_nobody(
    start: Callable[..., Program], tmp_path: Path
) -> None:
    """A change before the master's handlers stand is no HUP that ends it, and is told as soon as they do."""
    program = start(BEFORE_SERVING)
    (line,) = program.wait_logged("watches for changes")
    match = re.search(r"pid=(\d+)", line)
    assert match is not None
    wait_until(lambda: "prefork: watcher" in title_of(int(match[1])), "a watcher")
    (tmp_path / "words.py").write_text("pass\n")
    stays(lambda: program.popen.poll() is None, "it lives", span=1.5)
    (tmp_path / "go").touch()
    program.told("hup")
    program.popen.kill()
    program.wait()
    wait_until(lambda: not is_alive(int(match[1])), "the watcher has ended")


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command that is refused."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_without_its_library_it_says_what_to_install(tmp_path: Path) -> None:
    """Where watchfiles is missing, exit code 2 and the command that installs it."""
    program = (
        "import sys, importlib.util as util; find = util.find_spec\n"
        "util.find_spec = lambda name, *more: None if name == 'watchfiles' else find(name, *more)\n"
        "from prefork.cli import main\n"
        f"sys.argv[1:] = ['run', {ECHO!r}, '-b', '127.0.0.1:0', '--watch']\n"
        "main()\n"
    )
    done = run(tmp_path, "-c", program)
    assert done.returncode == 2
    assert "pip install 'prefork[reload]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_workers_it_is_refused(tmp_path: Path) -> None:
    """``workers = 0`` serves without a master, so there is nobody who could reload: exit code 2."""
    done = run(tmp_path, "-m", "prefork", "run", ECHO, "-w", "0", "-b", "127.0.0.1:0", "--watch")
    assert done.returncode == 2
    assert "workers = 0" in done.stderr
