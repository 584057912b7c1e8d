"""The command line without a server: usage, errors and their exit codes, and ``prefork config``."""

from __future__ import annotations

import json
import os
import re
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest

from prefork._version import __version__
from prefork.cli import command_line
from prefork.cli.commands import loading
from prefork.cli.commands.options import SECTIONS
from prefork.host.stopping import StoppedEarly
from prefork.inspect.find import SeveralPoolsError
from prefork.inspect.running_pool import NoPoolError
from prefork.workers.errors import (
    BindError,
    BootError,
    CrashLoopError,
    PreforkError,
    SettingsError,
    TargetError,
)
from prefork.workers.settings import AUTO, ROWS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

APPLICATION = """
import prefork
print("printed by the application")
class Shout(prefork.StreamRequestHandler): pass
class Server(prefork.PreForkingTCPServer):
    RequestHandlerClass = Shout
    workers = 3
    max_children = 5
    pool_name = "shouting"
class Crowded(Server):
    workers = 6
"""


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """``run(*arguments)`` returns exit code, standard output and standard error."""
    for name in [name for name in os.environ if name.startswith(("PREFORK_", "WEB_CONC"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "application.py").write_text(APPLICATION)

    def run_command(*arguments: str) -> tuple[int, str, str]:
        status = command_line.run_command(arguments)
        said = capfd.readouterr()
        return status, said.out, said.err

    yield run_command
    sys.modules.pop("application", None)


# --- usage


@pytest.mark.parametrize("package", ["prefork", "prefork.cli"])
def test_packages_run_as_programs(package: str) -> None:
    """``python -m`` finds the command line under the name of either package."""
    assert find_spec(f"{package}.__main__") is not None


def test_version_and_help(run: Callable[..., Any]) -> None:
    """``--version`` and ``-h`` need no target, and the help lists every command."""
    assert run("--version")[:2] == (0, f"prefork {__version__} (Python {sys.version.split()[0]})\n")
    status, out, _ = run("-h")
    assert status == 0
    listed = re.findall(r"^  ([a-z]+)  ", out.partition("Serve:\n")[2], re.MULTILINE)
    assert listed[:3] == ["run", "check", "config"]
    assert set(listed) == set(command_line.commands.commands)


@pytest.mark.parametrize(
    "command", command_line.commands.list_commands(click.Context(command_line.commands))
)
def test_every_command_has_its_help(run: Callable[..., Any], command: str) -> None:
    """Every command has a help."""
    status, out, err = run(command, "-h")
    assert (status, err) == (0, "")
    assert out.startswith(f"Usage: prefork {command} [OPTIONS]")


def test_no_arguments_give_the_help(run: Callable[..., Any]) -> None:
    """Without arguments the help is printed, and the exit code is 2."""
    status, out, err = run()
    assert (status, err) == (2, "")
    assert out == run("--help")[1]


def test_help_is_made_from_the_table(run: Callable[..., Any]) -> None:
    """Every setting has its flag and its sentence in the help of ``run``, and its variable as the help says."""
    out = " ".join(run("run", "--help")[1].split())
    for row in ROWS.values():
        assert row.flag in out
        assert row.about.help in out
        assert row.variable == "PREFORK_" + row.flag.removeprefix("--").replace("-", "_").upper()


def test_every_setting_stands_in_one_section() -> None:
    """The sections of the help have each setting once, and nothing else."""
    keys = [key for section in SECTIONS.values() for key in section]
    assert sorted(keys) == sorted(ROWS)


@pytest.mark.parametrize("command", ["check", "config"])
def test_flags_of_settings_stand_in_one_help(run: Callable[..., Any], command: str) -> None:
    """``check`` and ``config`` accept the flags of settings, and refer to the help of ``run`` for them."""
    out = run(command, "--help")[1]
    assert "--workers" not in out
    assert "'prefork run --help'" in out
    assert run(command, "-w", "x", "app:Up")[0] == 2


@pytest.mark.parametrize("width", ["80", "120"])
def test_help_fits_the_terminal(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, width: str
) -> None:
    """No line of any help is wider than the terminal."""
    monkeypatch.setenv("COLUMNS", width)
    for command in ("", *command_line.commands.commands):
        assert max(map(len, run(*command.split(), "--help")[1].splitlines())) <= int(width)


@pytest.mark.parametrize(
    ("meant", "arguments"),
    [
        (
            "Did you mean 'check'? A module of this name is served by 'prefork run chek'.",
            ["chek", "app:Up"],
        ),
        ("No such option '--wrokers'. Did you mean '--workers'?", ["--wrokers", "4", "app:Up"]),
        ("Missing argument 'TARGET'", ["run"]),
        ("Got unexpected extra argument (more)", ["app:Up", "more"]),
        ("requires an argument", ["run", "app:Up", "-w"]),
        ("Choose from: bash, zsh, fish ", ["completion"]),
    ],
)
def test_wrong_usage(run: Callable[..., Any], meant: str, arguments: list[str]) -> None:
    """Wrong usage ends with exit code 2 and one message that names the help."""
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("prefork: error: ")
    assert meant in err.replace('"', "'").replace("\n", " ")
    assert "--help'" in err


@pytest.mark.parametrize(
    ("means_run", "arguments"),
    [
        (True, ["app:Up"]),
        (True, ["app.py:Up", "-w", "4"]),
        (True, ["-w", "4", "app:Up"]),
        (True, ["--bind=:80", "app:Up"]),
        (True, ["application"]),
        (False, ["run", "app:Up"]),
        (False, ["check", "app:Up"]),
        (False, ["scale", "-2"]),
        (False, ["stauts"]),
        (False, ["rum"]),
        (False, ["--help"]),
        (False, ["-V"]),
        (False, []),
    ],
)
def test_target_alone_means_run(means_run: bool, arguments: list[str]) -> None:
    """``prefork TARGET`` means ``prefork run TARGET``, except where TARGET resembles a command."""
    assert isinstance(command_line.commands, command_line.Commands)
    assert command_line.commands.means_run(arguments) is means_run


# --- refusals


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("workers = 'x' (from flag --workers) is refused", ["-w", "x"]),
        ("bind = '80' (from flag --bind) is refused: a port needs its colon", ["-b", "80"]),
        ("bind = ':x' (from flag --bind) is refused", ["-b", ":80", "-b", ":x"]),
        ("config = 'nowhere' (from flag --config) is refused", ["-c", "nowhere"]),
        ("umask = '9' (from flag --umask) is refused", ["-m", "9"]),
    ],
)
def test_settings_are_refused_before_the_application_is_imported(
    run: Callable[..., Any], message: str, arguments: list[str]
) -> None:
    """A wrong setting ends with exit code 2 and one line, before the application is imported."""
    status, out, err = run("run", "application:Shout", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"prefork: error: {message}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("message", "target"),
    [
        ("there is no module nowhere", "nowhere:Shout"),
        ("application has no Shuot; did you mean Shout?", "application:Shuot"),
        ("an instance of module cannot be served", "application:prefork"),
    ],
)
def test_targets_are_refused(run: Callable[..., Any], message: str, target: str) -> None:
    """A wrong target ends with exit code 2 and one line, without a traceback."""
    status, _, err = run("config", target)
    assert status == 2
    assert message in err
    assert "Traceback" not in err


def test_class_attributes_count_for_the_bound(run: Callable[..., Any]) -> None:
    """Bounds in class attributes count, and a flag overrides them."""
    status, _, err = run("config", "application:Crowded")
    assert status == 2
    assert (
        "workers = 6 (from attribute Crowded.workers) is refused: "
        "at most max_children = 5 (from attribute Crowded.max_children)"
    ) in err
    assert run("config", "application:Crowded", "--max-children", "6")[0] == 0


def test_several_servers_need_workers(run: Callable[..., Any]) -> None:
    """Several servers without workers are refused."""
    status, _, err = run("config", "application:Shout", "-w", "0", "-b", ":0", "-b", ":0")
    assert status == 2
    assert "workers = 0 (from flag --workers) is refused: without workers only one address" in err


def test_application_that_cannot_be_imported(run: Callable[..., Any], tmp_path: Path) -> None:
    """An application that cannot be imported ends with exit code 3 and its own traceback."""
    (tmp_path / "broken.py").write_text("def f():\n    raise RuntimeError('no database')\nf()\n")
    status, out, err = run("config", "broken.py:f")
    assert (status, out) == (3, "")
    first, *report = err.splitlines()
    assert first == "prefork: error: broken.py cannot be imported: RuntimeError: no database"
    assert report[0] == "Traceback (most recent call last):"
    assert "broken.py" in report[1]
    assert report[-1] == "RuntimeError: no database"
    assert "cli.py" not in err


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (1, PreforkError("x")),
        (2, NoPoolError("x")),
        (2, SettingsError("workers", 1, "x", "y")),
        (2, TargetError("x", "y")),
        (2, SeveralPoolsError("x")),
        (3, BootError("x")),
        (4, BindError("tcp://x:1", "y")),
        (5, CrashLoopError("x")),
        (130, KeyboardInterrupt()),
        (0, StoppedEarly()),
    ],
)
def test_exit_codes(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, status: int, error: BaseException
) -> None:
    """Each kind of failure has its exit code."""

    def fail(*_arguments: object) -> None:
        raise error

    monkeypatch.setattr(loading, "resolve", fail)
    assert run("config")[0] == status


# --- config


@pytest.mark.parametrize("command", ["run", "check"])
def test_target_is_missing(run: Callable[..., Any], command: str) -> None:
    """Without TARGET, and without one in the settings file, the message names both places."""
    status, _, err = run(command)
    assert status == 2
    assert "name it here, such as app:Handler, or as target in prefork.toml" in err
    assert f"Try 'prefork {command} --help'" in err


def test_second_settings_file_is_told(run: Callable[..., Any]) -> None:
    """A table in pyproject.toml that is not read because of prefork.toml is a warning."""
    Path("prefork.toml").write_text("workers = 2\n")
    Path("pyproject.toml").write_text("[tool.prefork]\nworkers = 3\n")
    status, _, err = run("config")
    said = (
        "prefork: warning: ignores [tool.prefork] of pyproject.toml; prefork.toml is read instead"
    )
    assert (status, err) == (0, f"{said}\n")


def test_config_keeps_the_target_of_the_file(run: Callable[..., Any]) -> None:
    """The output of ``prefork config`` can be saved as prefork.toml, with what the file serves."""
    Path("prefork.toml").write_text('target = "application:make"\nfactory = true\nworkers = 3\n')
    status, out, _ = run("config")
    read = tomllib.loads(out)
    assert (status, read["target"], read["factory"]) == (0, "application:make", True)
    assert read["workers"] == 3


def test_config_keeps_the_target_of_the_command_line(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    """The output of ``prefork config TARGET`` names the target, so that ``prefork run`` then needs none."""
    (tmp_path / "served.py").write_text(
        "import prefork\nclass H(prefork.BaseRequestHandler): pass\n"
    )
    status, out, _ = run("config", "served.py:H")
    assert (status, tomllib.loads(out)["target"]) == (0, "served.py:H")


def test_example_is_a_commented_prefork_toml(run: Callable[..., Any]) -> None:
    """``prefork config --example`` has each setting with its sentence, and each of its lines can be uncommented."""
    status, out, _ = run("config", "--example")

    assert (status, tomllib.loads(out)) == (0, {})
    chosen = "\n".join(line[1:] for line in out.splitlines() if re.match(r"#\w+ = ", line))
    read = tomllib.loads(chosen)
    assert (read["max_children"], read["crash_loop"], read["bind"]) == (
        40,
        "retry",
        ["127.0.0.1:8000"],
    )
    keys = [key for keys in SECTIONS.values() for key in keys]
    assert list(read) == ["target", "factory", *keys]
    for row in ROWS.values():
        assert row.about.help in out.replace("\n# ", " ")
        if read[row.key] != AUTO:
            row.converted(read[row.key], "the example")


def test_config_is_a_prefork_toml(run: Callable[..., Any], tmp_path: Path) -> None:
    """The output of ``prefork config`` is a prefork.toml with the same settings."""
    flags = ["-w", "2", "-m", "027", "--drain-delay", "500ms", "-b", "[::1]:0", "-b", "unix:/a b"]
    status, out, _ = run("config", *flags, "-n", "x", "-u", "0", "--limits", "nofile=1024,as=2G")
    assert status == 0
    assert tomllib.loads(out)["umask"] == "027"
    (tmp_path / "prefork.toml").write_text(out)
    again = run("config", "--json")[1]
    assert {key: said["value"] for key, said in json.loads(again).items()} == {
        "workers": 2,
        "max_children": 40,
        "min_spare": None,
        "max_spare": None,
        "max_requests": None,
        "max_lifetime": None,
        "max_memory": None,
        "jitter": 0.1,
        "request_timeout": None,
        "soft_timeout": None,
        "cpu_timeout": None,
        "check_client": "off",
        "max_queue_wait": None,
        "max_per_client": None,
        "slow_request": None,
        "client_timeout": 30.0,
        "edge_timeout": 5.0,
        **dict.fromkeys(("proxy_from", "allow", "deny", "tls_certificate", "tls_key")),
        **dict.fromkeys(("tls_key_password_file", "tls_client_ca", "tls_alpn")),
        "tls_watch": False,
        "max_auth_failures": 10,
        "defer_accept": None,
        "crash_loop": "retry",
        "restore_process": False,
        "fork_check": "warn",
        "boot_timeout": 60.0,
        "graceful_timeout": 25.0,
        "drain_delay": 0.5,
        "max_parked": None,
        "park_timeout": 60.0,
        "park_new": False,
        "linger": 0.001,
        "limit_head": 32768,
        "limit_fields": 100,
        "limit_body": None,
        "forwarded_from": None,
        "forwarded_fields": "x-forwarded",
        "metrics": None,
        "agent": None,
        "agent_mode": "maxconn",
        "metrics_dir": None,
        "access_log": "off",
        "user": 0,
        "group": None,
        "umask": 0o27,
        "limits": {"nofile": 1024, "as": 2**31},
        "nice": None,
        "oom_score_adj": None,
        "name": "x",
        "bind": ["[::1]:0", "unix:/a b"],
        "backlog": None,
        "log_level": "info",
        "log_format": "text",
        "log_config": None,
        "pidfile": None,
    }


def test_config_tells_the_origin_of_every_value(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """``prefork config`` names the origin of each value: flag, environment, file, attribute or default."""
    monkeypatch.setenv("PREFORK_UMASK", "027")
    (tmp_path / "prefork.toml").write_text("drain_delay = 5\n")
    status, out, err = run("config", "--json", "application:Server", "--max-children", "9")
    assert status == 0
    assert err == "printed by the application\n"
    origins = {key: said["origin"] for key, said in json.loads(out).items()}
    assert origins["max_children"] == "flag --max-children"
    assert origins["umask"] == "environment PREFORK_UMASK"
    assert origins["drain_delay"] == "prefork.toml"
    assert origins["workers"] == "attribute Server.workers"
    assert origins["name"] == "attribute Server.pool_name"
    assert origins["pidfile"] == "default"


@pytest.mark.parametrize(
    ("value", "origin", "arguments", "environ", "file", "attribute"),
    [
        (30.0, "command line's default", [], {}, "", ""),
        (0.0, "attribute Server.client_timeout", [], {}, "", "client_timeout = 0"),
        (5.0, "prefork.toml", [], {}, "client_timeout = 5", "client_timeout = 0"),
        (6.0, "environment PREFORK_CLIENT_TIMEOUT", [], {"PREFORK_CLIENT_TIMEOUT": "6"}, "", ""),
        (0.0, "flag --client-timeout", ["--client-timeout", "0"], {}, "client_timeout = 5", ""),
    ],
)
def test_own_default_of_client_timeout(
    run: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    *,
    value: float,
    origin: str,
    arguments: list[str],
    environ: dict[str, str],
    file: str,
    attribute: str,
) -> None:
    """``client_timeout`` is 30 s on the command line unless a source has another value, 0 included."""
    for name, text in environ.items():
        monkeypatch.setenv(name, text)
    (tmp_path / "prefork.toml").write_text(file)
    said = f"Server.{attribute}\n" if attribute else ""
    (tmp_path / "application.py").write_text(APPLICATION + said)
    status, out, _ = run("config", "--json", "application:Server", *arguments)
    assert status == 0
    assert json.loads(out)["client_timeout"] == {"value": value, "origin": origin}


@pytest.mark.parametrize(
    "arguments",
    [["config"], pytest.param(["check", "application:Shout"], marks=pytest.mark.processes)],
)
def test_misspelt_variables_are_told(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    """A misspelt variable is reported once on standard error, and nothing is refused."""
    monkeypatch.setenv("PREFORK_WORKRES", "9")
    status, _, err = run(*arguments)
    assert status == 0
    said = "prefork: warning: ignores the environment variable PREFORK_WORKRES; did you mean PREFORK_WORKERS?"
    assert err.count(said) == 1


def test_top_without_rich_says_what_to_install(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without rich, ``prefork top`` ends with exit code 2 and the command that installs it."""
    for name in [name for name in sys.modules if name.split(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "prefork.inspect.screen", raising=False)
    monkeypatch.setitem(sys.modules, "rich", None)
    status, out, err = run("top")
    assert (status, out) == (2, "")
    assert "prefork top needs the package rich: pip install 'prefork[top]'" in err


def test_top_without_a_terminal_names_what_needs_none(run: Callable[..., Any]) -> None:
    """Without a terminal, ``prefork top`` ends with exit code 2 and names ``prefork status``."""
    status, _, err = run("top")
    assert status == 2
    assert "'prefork status' prints the same once" in err


def test_config_explains_automatic_workers(run: Callable[..., Any]) -> None:
    """The origin of an automatic number of workers says what it was computed from."""
    (line,) = [line for line in run("config")[1].splitlines() if line.startswith("workers")]
    assert "# default: auto, " in line
    assert "affinity" in line
