"""Every program in examples/ and in README.md, run as a user runs it: real processes, output read, nothing left."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.clients import TIMEOUT, connect, read_all, send_line
from tests.support.processes import cpu_seconds, is_alive, live_children_of
from tests.support.server import environment
from tests.support.waiting import CEILING, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = REPOSITORY / "examples"
RUN_CEILING = 60.0
"""Seconds for a client program, which on a slow machine computes for a while."""


class Example:
    """A running server program of the examples."""

    def __init__(self, popen: subprocess.Popen[bytes], output: Path) -> None:
        self.popen = popen
        self.output = output

    @property
    def printed(self) -> str:
        """What it has printed so far, its standard error included."""
        return self.output.read_text()

    def wait_printed(self, pattern: str) -> re.Match[str]:
        """Return where a pattern is in the output, once it is there."""
        return wait_until(
            lambda: re.search(pattern, self.printed, re.MULTILINE),
            lambda: f"{pattern!r} in the output:\n{self.printed}",
        )

    @property
    def port(self) -> str:
        """The port it says it serves on."""
        return self.wait_printed(r"^Serving on .*:(\d+)\b").group(1)


@contextlib.contextmanager
def serving(folder: Path, *arguments: str) -> Iterator[Example]:
    """Run Python for the length of the block; then TERM must end it with status 0, silently."""
    output = folder / "output"
    with output.open("wb") as file:
        popen = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment(),
            cwd=folder,
            start_new_session=True,
        )
    example = Example(popen, output)
    try:
        yield example
        popen.terminate()
        assert popen.wait(CEILING) == 0, example.printed
        assert "Traceback" not in example.printed, example.printed
    finally:
        if popen.poll() is None:
            popen.kill()
            popen.wait()


def run(folder: Path, program: str, *arguments: str) -> str:
    """Run a client program to its end, which must be good, and return what it printed."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / program), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RUN_CEILING,
        check=False,
        env=environment(),
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def readme_program() -> str:
    """Return the first Python program of the README, on a free port."""
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    program = re.findall(r"^```python\n(.*?)^```$", readme, re.DOTALL | re.MULTILINE)[0]
    return program.replace("9000", "0")


def test_readme_program(tmp_path: Path) -> None:
    """What the README shows is a server, once it is asked where it listens."""
    asked = readme_program().replace(
        "        server.serve_forever()",
        "        print('Serving on %s:%s' % server.server_address, flush=True)\n"
        "        server.serve_forever()",
    )
    (tmp_path / "upper.py").write_text(asked)
    with serving(tmp_path, str(tmp_path / "upper.py")) as example:
        assert ask(("127.0.0.1", int(example.port)), "hello") == "HELLO"


def test_readme_command(tmp_path: Path) -> None:
    """The README's handler is served by the README's command, on a free port, without its main part."""
    (tmp_path / "handlers.py").write_text(readme_program())
    command = ["-m", "prefork", "handlers.py:Upper", "--bind", "127.0.0.1:0", "--workers", "4"]
    with serving(tmp_path, *command) as example:
        found = example.wait_printed(r"listeners=tcp://127\.0\.0\.1:(\d+) workers=4\b")
        assert ask(("127.0.0.1", int(found.group(1))), "hello") == "HELLO"


@pytest.mark.parametrize(
    ("server", "client"),
    [
        ("upper/tcp_server.py", "upper/tcp_client.py"),
        ("upper/stream_server.py", "upper/tcp_client.py"),
        ("upper/udp_server.py", "upper/udp_client.py"),
    ],
)
def test_upper(tmp_path: Path, server: str, client: str) -> None:
    """The documentation's upper-case programs print what the documentation says (E01, E02, E03)."""
    with serving(tmp_path, f"{EXAMPLES}/{server}", "--port", "0") as example:
        port = example.port
        for words in ("hello world with prefork", "python is nice"):
            printed = run(tmp_path, client, "--port", port, *words.split())
            assert printed == f"Sent:     {words}\nReceived: {words.upper()}\n"
            example.wait_printed(f"^127.0.0.1 wrote:\nb'{words}'$")


def test_mandelbrot_client_draws_a_picture(tmp_path: Path) -> None:
    """The client gets every tile, counts who served it, and writes a PNG of the size asked for."""
    with serving(
        tmp_path, f"{EXAMPLES}/mandelbrot/server.py", "--port", "0", "--workers", "2"
    ) as example:
        port = example.wait_printed(r"^Serving on 127\.0\.0\.1:(\d+) with 2 workers$").group(1)
        arguments = ["--port", port, "--size", "130x90", "--limit", "100", "picture.png"]
        printed = run(tmp_path, "mandelbrot/client.py", *arguments)

    rate, *served, written = printed.splitlines()
    assert re.fullmatch(r"12 tiles in \d+\.\d s: \d+\.\d tiles/s", rate)
    counts = [re.fullmatch(r"pid (\d+): (\d+) tiles", line) for line in served]
    assert sum(int(count[2]) for count in counts if count) == 12
    assert not any(is_alive(int(count[1])) for count in counts if count)
    assert written == "picture.png: 130x90 pixels"
    assert size_of_png(tmp_path / "picture.png") == (130, 90)


def size_of_png(path: Path) -> tuple[int, int]:
    """Check that a PNG holds what its header says, and return its size."""
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = (int.from_bytes(content[begin : begin + 4]) for begin in (16, 20))
    length = int.from_bytes(content[33:37])
    assert content[37:41] == b"IDAT"
    assert len(zlib.decompress(content[41 : 41 + length])) == height * (1 + 3 * width)
    return width, height


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("hello", "error expected: tile LEFT TOP STEP WIDTH HEIGHT LIMIT"),
        ("tile 0 0 1 0 1 1", "error expected: WIDTH, HEIGHT and LIMIT of at least 1"),
        ("tile 0 0 1 9999 9999 9999", "error too much: WIDTH times HEIGHT times LIMIT"),
    ],
)
def test_mandelbrot_server_refuses(tmp_path: Path, line: str, answer: str) -> None:
    """A request that is none, or too much, is answered with a sentence; the next one is served."""
    with serving(
        tmp_path, f"{EXAMPLES}/mandelbrot/server.py", "--port", "0", "--workers", "1"
    ) as example:
        address = ("127.0.0.1", int(example.port))
        assert ask(address, line).startswith(answer)
        pid, *rows = ask(address, "tile -2 0 2 2 1 50").splitlines()
        assert int(pid) != example.popen.pid
        assert rows == ["0.00 0.00"]


def ask(address: tuple[str, int], line: str) -> str:
    """One request of a line; everything until the server closes."""
    with connect(address, RUN_CEILING) as client:
        send_line(client, line)
        return read_all(client)


def test_whoami(tmp_path: Path) -> None:
    """The Unix-socket service knows its client from the kernel, and removes its socket at the end."""
    path = tmp_path / "whoami"
    with serving(tmp_path, f"{EXAMPLES}/whoami/server.py", str(path)) as example:
        example.wait_printed(f"^Serving on {re.escape(str(path))}$")
        arguments = ["--path", str(path), "me", "root", "nobody-of-this-name"]
        own, root, unknown = run(tmp_path, "whoami/client.py", *arguments).splitlines()

    assert re.fullmatch(rf"uid={os.getuid()}\({getpass.getuser()}\) gid={os.getgid()} pid=\d+", own)
    assert root.startswith("root: uid=0 home=")
    assert unknown == "nobody-of-this-name: no such user"
    assert not path.exists()


@pytest.mark.skipif(os.getuid() != 0, reason="needs another user to be")
def test_whoami_refuses_strangers(tmp_path: Path) -> None:
    """A client of another user is let in by nobody, although it may open the socket."""
    name = (
        f"\0prefork-test-{os.getpid()}"  # an abstract name has no file mode that would refuse first
    )
    stranger = (
        "import os, socket, sys\n"
        "os.setuid(65534)\n"
        "client = socket.socket(socket.AF_UNIX)\n"
        "client.settimeout(5)\n"
        "client.connect('\\0' + sys.argv[1])\n"
        "client.sendall(b'me\\n')\n"
        "print(client.recv(100))\n"
    )
    program = (
        "import runpy, sys\n"
        f"module = runpy.run_path({str(EXAMPLES / 'whoami/server.py')!r})\n"
        f"with module['WhoAmIServer']({name!r}, module['WhoAmI']) as server:\n"
        "    print('Serving on it', flush=True)\n"
        "    server.serve_forever()\n"
    )
    (tmp_path / "abstract.py").write_text(program)
    with serving(tmp_path, str(tmp_path / "abstract.py")) as example:
        example.wait_printed("^Serving")
        command = [sys.executable, "-c", stranger, name[1:]]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=RUN_CEILING, check=False, cwd="/"
        )
    # Closed before it sent, while it sent, or after.
    hung_up = ("BrokenPipeError", "ConnectionResetError")
    assert done.stdout == "b''\n" or any(one in done.stderr for one in hung_up), done.stderr


def test_factors(tmp_path: Path) -> None:
    """The http.server example answers JSON, and a wrong path with an error page."""
    with serving(tmp_path, f"{EXAMPLES}/web/factors.py", "--port", "0") as example:
        port = example.port
        answer = json.loads(get(port, "/360360"))
        assert answer["number"] == 360360
        assert answer["factors"] == [2, 2, 2, 3, 3, 5, 7, 11, 13]
        assert answer["pid"] != example.popen.pid
        for path in ("/", "/1", "/-7", "/hello", f"/{2**64}"):
            with pytest.raises(urllib.error.HTTPError, match="404") as refused:
                get(port, path)
            refused.value.close()


def test_visits(tmp_path: Path) -> None:
    """The WSGI example counts all visits in its database and each worker's own in its memory."""
    own: dict[str, int] = {}
    with serving(tmp_path, f"{EXAMPLES}/web/visits.py", "--port", "0") as example:
        for number in range(1, 9):
            text = get(example.port, "/")
            found = re.fullmatch(
                r"This is visit (\d+), and (?:the first to|number (\d+) of) worker (\d+)\.\n", text
            )
            assert found, text
            visit, before, pid = found.groups(default="1")
            own[pid] = own.get(pid, 0) + 1
            assert (int(visit), int(before)) == (number, own[pid])
    assert str(example.popen.pid) not in own


def get(port: str, path: str) -> str:
    """Return the body of a page."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=TIMEOUT) as answer:
        body: bytes = answer.read()
    return body.decode()


def test_demo(tmp_path: Path) -> None:
    """The demo shows both runs and who served in them, leaves nothing behind, and ends by itself."""
    printed = run(tmp_path, "demo.py", "--size", "160x120")

    rows = re.findall(
        r"^ +(\d+) +(\d+\.\d+) +(\d+\.\d+) +(\d+\.\d+)x +(.*)$", printed, re.MULTILINE
    )
    assert [int(workers) for workers, *_ in rows] == [1, default_workers()]
    assert rows[0][3] == "1.00"
    for _, _, _, _, served in rows:
        assert sum(map(int, re.findall(r"\d+: (\d+)", served))) == 12
    assert "the picture is the same" in printed or default_workers() == 1
    assert "\x1b" not in printed
    assert list(tmp_path.iterdir()) == []


def default_workers() -> int:
    """Return the number of workers of a pool that was not told otherwise."""
    from prefork.workers.machine import usable_cpus

    return usable_cpus().count


def test_demo_says_what_is_wrong(tmp_path: Path) -> None:
    """When the server cannot start, the demo says so, and its status is not 0."""
    (tmp_path / "prefork.py").write_text("raise SystemExit('no such luck')\n")
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "demo.py"), "--size", "80x40"],
        capture_output=True,
        text=True,
        timeout=RUN_CEILING,
        check=False,
        env=environment(PYTHONPATH=str(tmp_path)),
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert "demo: the server did not start" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.once  # one program and its signals
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_demo_interrupted(tmp_path: Path, number: int) -> None:
    """Ctrl-C, TERM and a closed terminal end the demo, its server and its workers, without a traceback."""
    popen = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "demo.py"), "--size", "640x400"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=tmp_path,
        start_new_session=True,
    )
    with popen:
        try:
            wait_until(lambda: computing(popen.pid), "a worker that computes")
            os.killpg(popen.pid, number)
            _, errors = popen.communicate(timeout=RUN_CEILING)
        finally:
            popen.kill()
    assert popen.returncode == 128 + signal.SIGINT
    assert errors == "\ndemo: interrupted\n"


def computing(demo: int) -> bool:
    """Whether a worker of the demo's server has begun to work."""
    workers = (worker for server in live_children_of(demo) for worker in live_children_of(server))
    return any(cpu_seconds(worker) > 0.2 for worker in workers)
