"""The example of an encrypted server for known clients, alone and behind a real HAProxy."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.certificates import Authority
from tests.support.engines import needs, running
from tests.support.ports import free_port
from tests.support.server import environment
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.server import Program

EDGE = Path(__file__).parents[2] / "examples" / "edge"

pytestmark = pytest.mark.once


def ask(authority: Authority, port: int, *more: str) -> subprocess.CompletedProcess[str]:
    """Run the client of the example."""
    command = [sys.executable, str(EDGE / "client.py"), "--ca", authority.file, *more]
    return subprocess.run(
        [*command, "localhost", str(port), "hello", "there"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def serving(start: Callable[..., Program], authority: Authority, *more: str) -> tuple[Program, int]:
    """Run the server of the example."""
    port = free_port()
    arguments: list[Any] = ["--certificate", authority.server("localhost")]
    arguments += ["--client-ca", authority.file, "--host", "127.0.0.1", "--port", str(port), *more]
    program = start(EDGE / "server.py", arguments=arguments, environ={"PYTHONWARNINGS": "error"})
    return program, port


def test_known_clients(start: Callable[..., Program], tmp_path: Path) -> None:
    """A client with a certificate is greeted by its name, and one without is not."""
    authority = Authority(tmp_path)
    program, port = serving(start, authority)
    alice = authority.client("alice")
    done = wait_until(
        lambda: found if (found := ask(authority, port, "--certificate", alice)).stdout else None,
        lambda: "the server answers",
    )
    assert re.fullmatch(
        r"CN=alice,.*O=Ex\\, Inc\. at 127\.0\.0\.1:\d+ said hello there\n", done.stdout
    )
    assert "does not want to talk" in ask(authority, port).stderr
    program.wait_logged(r"prefork\.access:.* identity=\"CN=alice,.*outcome=ok")


def test_behind_haproxy(start: Callable[..., Program], tmp_path: Path) -> None:
    """With the configuration of the example, the server knows the client behind the proxy."""
    haproxy = needs("haproxy")
    authority = Authority(tmp_path)
    program, port = serving(start, authority, "--proxy-from", "127.0.0.1")
    front = free_port()
    text = (EDGE / "haproxy.cfg").read_text()
    config = tmp_path / "haproxy.cfg"
    config.write_text(text.replace(":9444", f":{port}").replace(":9443", f"127.0.0.1:{front}"))
    alice = authority.client("alice")
    with running([haproxy, "-db", "-f", str(config)], tmp_path, front):
        done = wait_until(
            lambda: (
                found if (found := ask(authority, front, "--certificate", alice)).stdout else None
            ),
            lambda: "the server answers",
        )
        assert done.stdout.startswith("CN=alice,")
        assert "does not want to talk" in ask(authority, front).stderr
    assert program.popen.poll() is None


def test_salts_do_not_say_which_names_exist(tmp_path: Path) -> None:
    """After another start, a name that does not exist has the same salt, as one that exists has."""
    pytest.importorskip("scramp")
    example = runpy.run_path(str(EDGE / "scram.py"))
    users = tmp_path / "users.json"
    users.write_text("{}")
    first, second = (example["Records"](str(users)).of("bob") for _ in range(2))
    assert first == second
    secret = tmp_path / "users.json.secret"
    assert secret.stat().st_mode & 0o777 == 0o600
    secret.write_bytes(b"")
    with pytest.raises(SystemExit, match="is damaged"):
        example["Records"](str(users))


def test_passwords(start: Callable[..., Program], tmp_path: Path) -> None:
    """With SCRAM a name and its password log in; a wrong password and an unknown name get the same answer."""
    pytest.importorskip("scramp")
    authority = Authority(tmp_path)
    script = str(EDGE / "scram.py")

    def run(said: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, script, *arguments]
        return subprocess.run(
            command,
            input=said,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    users = tmp_path / "users.json"
    users.write_text(f'{{"alice": {run("secret", "record").stdout}}}')
    port = free_port()
    arguments = [
        "serve",
        str(users),
        "--certificate",
        authority.server("localhost"),
        "--port",
        str(port),
    ]
    program = start(EDGE / "scram.py", arguments=arguments)

    def ask_as(user: str, password: str) -> subprocess.CompletedProcess[str]:
        who = ("--ca", authority.file, "--user", user)
        return run(password, "ask", "localhost", str(port), "hello", *who)

    wait_until(
        lambda: ask_as("alice", "secret").stdout == "alice said hello\n", lambda: "alice logs in"
    )
    wrong, unknown = ask_as("alice", "other"), ask_as("bob", "secret")
    assert (wrong.stdout, unknown.stdout) == ("", "")
    assert (
        wrong.stderr == unknown.stderr == "The server does not know this name with this password.\n"
    )
    assert program.wait_logged("refused a client reason=authentication")
