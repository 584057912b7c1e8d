"""``[[listener]]`` tables: addresses with settings of their own, checked before anything is bound."""

from __future__ import annotations

import json
import tomllib
from typing import TYPE_CHECKING, Any

import pytest

from prefork.cli.command_line import run_command

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TABLES = """
deny = "192.0.2.0/24"

[[listener]]
bind = "127.0.0.1:0"
allow = ["10.0.0.0/8", "127.0.0.0/8"]
edge_timeout = "2s"

[[listener]]
bind = ["unix:/x", "unix:/y"]
allow = "unix:uid=0"
deny = []
"""


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run a command in a folder with a prefork.toml."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def run_with(text: str, *arguments: str) -> tuple[int, str, str]:
        (tmp_path / "prefork.toml").write_text(text)
        status = run_command(arguments)
        out, err = capfd.readouterr()
        return status, out, err

    return run_with


def test_config_shows_the_tables(run: Callable[..., Any], tmp_path: Path) -> None:
    """The output has the tables with their places, and is a prefork.toml that says the same."""
    status, out, _ = run(TABLES, "config")
    assert status == 0
    assert "# prefork.toml [[listener]] 2" in out
    read = tomllib.loads(out)
    assert "bind" not in read
    assert read["listener"][0]["allow"] == ["10.0.0.0/8", "127.0.0.0/8"]
    again = run(out, "config", "--json")
    assert again[0] == 0, again
    shown = json.loads(again[1])
    assert shown["bind"]["value"] == ["127.0.0.1:0", "unix:/x", "unix:/y"]
    assert [one["bind"] for one in shown["listener"]] == ["127.0.0.1:0", ["unix:/x", "unix:/y"]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[listener]\nbind = ':1'", "written as [[listener]]"),
        ("[[listener]]\nallow = '10.0.0.0/8'", "bind = None"),
        ("[[listener]]\nbind = ':1'\nworkers = 5", "no such setting of a listener"),
        ("[[listener]]\nbind = ':1'\nalow = 'unix'", "did you mean allow?"),
        ("bind = ':2'\n[[listener]]\nbind = ':1'", "into a table of its own"),
        ("[[listener]]\nbind = 5", "is refused"),
    ],
)
def test_tables_that_are_wrong(run: Callable[..., Any], text: str, words: str) -> None:
    """A table that is wrong is refused with its number."""
    status, _, err = run(text, "config")
    assert status == 2
    assert words in err, err


def test_other_places_cannot_say_where_to_listen(run: Callable[..., Any], tmp_path: Path) -> None:
    """A flag beside the tables would leave open which of them counts."""
    (tmp_path / "some_app.py").write_text(
        "import socketserver\nclass H(socketserver.StreamRequestHandler): pass\n"
    )
    status, _, err = run(TABLES, "config", "some_app:H", "-b", ":1")
    assert status == 2
    assert "leave one of them out" in err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (TABLES, "OK"),
        (TABLES.replace('"unix:uid=0"', '"10.0.0.0/8"'), "[[listener]] 2) is refused"),
        (
            TABLES.replace('edge_timeout = "2s"', 'tls_certificate = "/nowhere.pem"'),
            "prefork.toml [[listener]] 1) is refused: /nowhere.pem cannot be read",
        ),
    ],
)
@pytest.mark.processes
def test_check_finds_what_run_would_refuse(
    run: Callable[..., Any],
    tmp_path: Path,
    text: str,
    words: str,
) -> None:
    """``prefork check`` shows what stands before each address, and finds a rule or a file that cannot be used."""
    (tmp_path / "other_app.py").write_text(
        "import socketserver\nclass H(socketserver.StreamRequestHandler): pass\n"
    )
    status, out, err = run(text, "check", "other_app:H")
    seen = out + err
    assert words in seen, seen
    assert status == (0 if words == "OK" else 2)
    if words == "OK":
        assert "tcp://127.0.0.1:0 (address rules) unix:/x (address rules)" in seen
