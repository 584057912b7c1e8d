"""``prefork haproxy``: what it prints is good for a real HAProxy, and what cannot stand in a configuration is refused."""

from __future__ import annotations

import itertools
import subprocess
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from prefork.cli.command_line import commands
from tests.support.engines import needs

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.once

HOSTS = ("10.0.0.1", "10.0.0.2:9000", "localhost", "localhost:9001", "fd00::3", "[fd00::4]:9000")


def printed(*arguments: str) -> tuple[int, str]:
    """Return the exit code of the command, and what it prints or complains about."""
    done = CliRunner().invoke(commands, ["haproxy", *arguments])
    return done.exit_code, done.output


def test_haproxy_accepts_every_section(tmp_path: Path) -> None:
    """A real HAProxy finds neither an error nor a warning in what the command prints, with all flags and addresses."""
    haproxy = needs("haproxy")
    sections = ["defaults\n    timeout client 60s\n"]
    for number, (mode, *flags) in enumerate(
        itertools.product(("tcp", "http"), ("", "--weights"), ("", "--send-proxy"))
    ):
        given = [flag for flag in flags if flag]
        code, text = printed("--mode", mode, *given, "--backend", f"pool-{number}", *HOSTS)
        assert code == 0
        assert text.count("    server ") == len(HOSTS)
        assert ("maxconn 1" in text) == ("--weights" not in given)
        assert ("send-proxy-v2" in text) == ("--send-proxy" in given)
        sections.append(text)
        port = 20_000 + number
        sections.append(
            f"frontend f{number}\n    mode {mode}\n    bind 127.0.0.1:{port}\n    default_backend pool-{number}\n"
        )
    config = tmp_path / "haproxy.cfg"
    config.write_text("\n".join(sections))
    done = subprocess.run(
        [haproxy, "-c", "-f", str(config)], capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    "host",
    [
        "",
        "a b",
        "web1:",
        "web1:0",
        "web1:99999",
        "web1\nserver evil 1.2.3.4",
        "fe80::1%x\nserver evil 1.2.3.4",
        "-x:1",
        "256.1.1.1",
        ":8000",
        "[::1",
        "[::1]8000",
        "[web1]",
        "a:b:c",
    ],
)
def test_what_is_no_host_is_refused(host: str) -> None:
    """A word that is no host cannot put a line into the configuration: it is refused, by name and on one line."""
    code, text = printed("--", host)
    assert code == 2
    assert "it must be a host" in text
    assert "\nserver evil" not in text


def test_each_machine_is_one_server() -> None:
    """A machine that is given twice is refused, because it would get twice the requests; every server has a name of its own."""
    code, text = printed("web1", "web2", "web1:8000")
    assert code == 2
    assert "web1:8000 is given twice" in text
    for hosts in (("web1:1", "web1:2"), ("fd00::1", "fd00--1", "web1:1", "web1:2")):
        code, text = printed(*hosts)
        names = [line.split()[1] for line in text.splitlines() if line.startswith("    server ")]
        assert (code, len({*names})) == (0, len(hosts)), names


def test_name_of_the_backend_is_one_word() -> None:
    """A name that HAProxy would not take as one word is refused."""
    code, text = printed("--backend", "a\nb", "web1")
    assert code == 2
    assert "it must be 1 to 64 letters" in text
