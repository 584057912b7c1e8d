"""Words of other servers' command lines, and the completion by shells."""

from __future__ import annotations

import re

import pytest
from click.shell_completion import ShellComplete

from prefork.cli import habits
from prefork.cli.command_line import commands, run_command
from prefork.workers.settings import ROWS
from tests.support.boards import HERE, scoreboard


@pytest.mark.parametrize("word", habits.FLAGS)
def test_flag_of_another_server_is_answered(word: str, capfd: pytest.CaptureFixture[str]) -> None:
    """A flag of gunicorn or uvicorn ends with exit status 2 and with what to type instead."""
    assert run_command(["run", "app:Handler", word]) == 2
    assert f"No such option '{word}'; prefork has {habits.FLAGS[word]}." in capfd.readouterr().err


GUNICORN = set(
    re.findall(
        r"\S+",
        """
--access-logfile --access-logformat --asgi-disconnect-grace-period --asgi-lifespan
--asgi-loop --backlog --bind --ca-certs --capture-output --casefold-http-method
--cert-reqs --certfile --chdir --check-config --ciphers --config --control-socket
--control-socket-mode --daemon --dirty-app --dirty-graceful-timeout --dirty-threads
--dirty-timeout --dirty-workers --disable-redirect-access-to-syslog
--do-handshake-on-connect --dogstatsd-tags --enable-backlog-metric
--enable-stdio-inheritance --env --error-logfile --forwarded-allow-ips --forwarder-headers
--graceful-timeout --group --header-map --http-parser --http-protocols --http2-cleartext
--http2-initial-window-size --http2-max-concurrent-streams --http2-max-frame-size
--http2-max-header-list-size --initgroups --keep-alive --keyfile
--limit-request-field_size --limit-request-fields --limit-request-line --log-config
--log-config-json --log-file --log-level --log-syslog --log-syslog-facility
--log-syslog-prefix --log-syslog-to --logger-class --max-requests --max-requests-jitter
--name --no-control-socket --no-sendfile --paste --paste-global --paster
--permit-obsolete-folding --permit-unconventional-http-method
--permit-unconventional-http-version --pid --preload --print-config --protocol
--proxy-allow-from --proxy-protocol --pythonpath --reload --reload-engine
--reload-extra-file --reuse-port --root-path --spew --ssl-version --statsd-host
--statsd-prefix --strip-header-spaces --suppress-ragged-eofs --threads --timeout --umask
--user --uwsgi-allow-from --websocket-max-message-size --worker-class --worker-connections
--worker-tmp-dir --workers -D -R -b -c -e -g -k -m -n -p -t -u -w
""",
    )
)
"""The flags of gunicorn 27."""


def test_every_flag_of_gunicorn_has_an_answer() -> None:
    """Each flag of gunicorn is a flag of ours, or is answered with what to type instead."""
    ours = {flag for each in commands.commands["run"].params for flag in each.opts}
    assert ours | habits.FLAGS.keys() >= GUNICORN


@pytest.mark.parametrize("word", habits.COMMANDS)
def test_command_of_another_program_is_answered(
    word: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """A command of another program is no TARGET and no misspelt command: it is answered with ours."""
    assert run_command([word]) == 2
    said = capfd.readouterr().err
    assert f"No such command '{word}'; prefork has {habits.COMMANDS[word]}." in said


def test_answers_name_what_exists() -> None:
    """No habit is a word of ours, and each flag and command that an answer begins with exists."""
    ours = {flag for one in commands.commands.values() for each in one.params for flag in each.opts}
    ours |= {"--help", "--version"}

    of_run = {flag for each in commands.commands["run"].params for flag in each.opts}
    assert of_run.isdisjoint(habits.FLAGS)
    assert set(commands.commands).isdisjoint(habits.COMMANDS)
    for answer in (*habits.FLAGS.values(), *habits.COMMANDS.values()):
        for flag in re.findall(r"--[a-z-]+", answer):
            assert flag in ours
    for answer in habits.COMMANDS.values():
        assert answer.split()[0] in {*ours, *commands.commands}


def completed(*words: str) -> list[str]:
    """Return what a shell would offer for the last of these words."""
    shell = ShellComplete(commands, {}, "prefork", "_PREFORK_COMPLETE")
    return [item.value for item in shell.get_completions(list(words[:-1]), words[-1])]


def test_choices_are_shown_and_completed(capfd: pytest.CaptureFixture[str]) -> None:
    """The help shows the words of each choice, and a shell completes them."""
    assert run_command(["run", "--help"]) == 0
    shown = " ".join(capfd.readouterr().out.split())
    for row in ROWS.values():
        if row.choices:
            assert f"[{'|'.join(row.choices)}; default: {row.shown(row.default)}]" in shown
            assert completed("run", row.flag, "") == list(row.choices)
    assert completed("sta") == ["status"]


@pytest.mark.parametrize("command", ["status", "stop", "reload", "dump", "top"])
def test_names_of_pools_are_completed(command: str) -> None:
    """A shell completes the names and pids of the running pools."""
    with scoreboard(name="shoe-shop"):
        assert completed(command, "shoe-") == ["shoe-shop"]
        assert str(HERE) in completed(command, "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_script_for_a_shell(shell: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Each shell gets a script of its own, which calls prefork."""
    assert run_command(["completion", shell]) == 0
    assert f"_PREFORK_COMPLETE={shell}_complete" in capfd.readouterr().out


def test_no_such_shell_names_those_there_are(capfd: pytest.CaptureFixture[str]) -> None:
    """Another shell is refused with the names of the three."""
    assert run_command(["completion", "tcsh"]) == 2
    assert "'bash', 'zsh', 'fish'" in capfd.readouterr().err
