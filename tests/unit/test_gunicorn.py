"""From a gunicorn.conf.py to a prefork.toml."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefork.cli.command_line import run_command
from prefork.cli.gunicorn import KNOWN, mapped
from prefork.workers.settings import ROWS

if TYPE_CHECKING:
    from collections.abc import Mapping

CONF = """
import os

wsgi_app = "shop.wsgi:application"
bind = ["0.0.0.0:8000", "unix:/run/shop.sock", "127.0.0.1", "[::1]:80"]
workers, threads, worker_class = 2 * 2 + 1, 4, "gevent"
timeout, graceful_timeout, keepalive = 0, 30, 5
max_requests, max_requests_jitter = 1000, 50
accesslog, errorlog, loglevel = "-", "/var/log/shop", "info"
certfile, keyfile, ca_certs, cert_reqs = "a.pem", "b.pem", "ca.pem", 1
forwarded_allow_ips = "*"
proxy_protocol, proxy_allow_ips = True, "10.0.0.1, 10.0.0.2"
umask = 0o22
proc_name = 'shop'
reload = preload_app = True
daemon = False
secret = "hidden"


def post_fork(server, worker):
    print(worker)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give an empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_settings_of_gunicorn_become_a_prefork_toml(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The output is a prefork.toml with the same meaning, and says in comments what is to be done by hand."""
    Path("gunicorn.conf.py").write_text(CONF)
    assert run_command(["config", "--from-gunicorn", "gunicorn.conf.py"]) == 0
    text = capfd.readouterr().out
    assert tomllib.loads(text) == {
        "target": "shop.wsgi:application",
        "bind": ["0.0.0.0:8000", "unix:/run/shop.sock", "127.0.0.1:8000", "[::1]:80"],
        "workers": 5,
        "graceful_timeout": "30s",
        "park_timeout": "5s",
        "max_requests": 1050,
        "jitter": "4.8%",
        "access_log": "combined",
        "log_level": "info",
        "tls_certificate": ["a.pem"],
        "tls_key": ["b.pem"],
        "tls_client_ca": "ca.pem",
        "forwarded_from": ["0.0.0.0/0", "::/0", "unix"],
        "proxy_from": ["10.0.0.1", "10.0.0.2"],
        "umask": "022",
        "name": "shop",
    }
    remarks = {line[2:].partition(":")[0] for line in text.splitlines()[1:] if line[0] == "#"}
    by_hand = {"worker_class", "threads", "errorlog", "cert_reqs", "forwarded_allow_ips", "reload"}
    assert remarks == {*by_hand, "post_fork"}
    assert "hidden" not in text
    (folder / "prefork.toml").write_text(text)
    assert run_command(["config"]) == 0


@pytest.mark.parametrize(
    ("values", "settings"),
    [
        ({"wsgi_app": "shop:create_app()"}, {"target": "shop:create_app", "factory": True}),
        ({"bind": "localhost:5000"}, {"bind": ["localhost:5000"]}),
        (
            {"bind": "127.0.0.1:80, unix:/x.sock,unix://y.sock,"},
            {"bind": ["127.0.0.1:80", "unix:/x.sock", "unix:y.sock"]},
        ),
        ({"bind": "", "forwarded_allow_ips": ""}, {}),
        ({"keepalive": 0}, {"park_timeout": 1}),
        ({"keepalive": "0", "timeout": "0"}, {"park_timeout": 1}),
        ({"workers": "3", "umask": "0o22"}, {"workers": 3, "umask": "022"}),
        (
            {"max_requests": "1000", "max_requests_jitter": "50"},
            {"max_requests": 1050, "jitter": 0.048},
        ),
        ({"proxy_protocol": "off", "daemon": "False"}, {}),
        ({"max_requests": 0, "max_requests_jitter": 9}, {}),
        ({"umask": 0, "accesslog": None, "ca_certs": "ca.pem"}, {}),
        ({"proxy_protocol": True}, {"proxy_from": ["127.0.0.1", "::1"]}),
        ({"proxy_protocol": True, "proxy_allow_ips": ""}, {}),
        ({"proxy_protocol": True, "proxy_allow_ips": " , "}, {}),
        ({"forwarded_allow_ips": "127.0.0.1,::1"}, {"forwarded_from": ["127.0.0.1", "::1"]}),
    ],
)
def test_counterparts(values: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """A setting that is off in gunicorn sets nothing; others have the value that means the same here."""
    assert mapped(values).settings == settings


def test_every_setting_of_gunicorn_has_an_answer() -> None:
    """Whatever gunicorn's settings are set to, what comes out are settings that exist, and sentences."""
    found = mapped(dict.fromkeys(sorted(KNOWN), "1"))
    assert found.settings.keys() <= {*ROWS, "target"}
    assert len(found.settings) > 15
    assert all(found.remarks.values())


@pytest.mark.parametrize(
    ("values", "remarks"),
    [
        ({}, {"timeout": "30 seconds", "workers": "is 1", "forwarded_allow_ips": "127.0.0.1"}),
        (
            {"timeout": 0, "workers": 1, "keepalive": 0, "wsgi_app": "shop:create_app('x')"},
            {"forwarded_allow_ips": "no proxy", "keepalive": "second", "wsgi_app": "arguments"},
        ),
        (
            {"timeout": 1, "workers": 1, "forwarded_allow_ips": "", "keepalive": 2, "threads": "1"},
            {},
        ),
        (
            {
                "timeout": 1,
                "workers": 1,
                "forwarded_allow_ips": "",
                "reload": "false",
                "protocol": "uwsgi",
                "http_protocols": "h1",
                "wsgi_app": "shop:create_app()",
            },
            {"protocol": "uwsgi is not served"},
        ),
    ],
)
def test_remarks(values: Mapping[str, Any], remarks: Mapping[str, str]) -> None:
    """A remark says where the meaning differs, also for three settings that the file leaves out."""
    found = mapped(values).remarks
    assert found.keys() == remarks.keys()
    for name, words in remarks.items():
        assert words in found[name]


@pytest.mark.usefixtures("folder")
def test_file_is_printed_as_it_is_meant(capfd: pytest.CaptureFixture[str]) -> None:
    """Numbers may be words of the environment, and a factory and closed idle connections stay so in TOML."""
    Path("gunicorn.conf.py").write_text(
        "import os\nwsgi_app = 'shop:create_app()'\nkeepalive = 0\n"
        "workers = os.environ.get('NO_SUCH_VARIABLE', '3')\n"
    )
    assert run_command(["config", "--from-gunicorn", "gunicorn.conf.py"]) == 0
    printed = {
        "target": "shop:create_app",
        "factory": True,
        "park_timeout": "1s",
        "workers": 3,
    }
    assert tomllib.loads(capfd.readouterr().out) == printed


@pytest.mark.parametrize(
    ("source", "code", "words"),
    [
        (None, 2, "cannot be read (No such file or directory)"),
        ("1 / 0", 3, "gunicorn.conf.py cannot be run: ZeroDivisionError"),
        ("max_requests = str('many')", 2, "max_requests = 'many' (from gunicorn.conf.py)"),
        ("workers = str('many')", 2, "workers = 'many' (from gunicorn.conf.py)"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_wrong_files_are_refused(
    source: str | None, code: int, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """A file that cannot be read or run, or that has a wrong value, is refused with its name."""
    if source is not None:
        Path("gunicorn.conf.py").write_text(source)
    assert run_command(["config", "--from-gunicorn", "gunicorn.conf.py"]) == code
    assert words in capfd.readouterr().err
    if source is not None:
        assert run_command(["config", "--config", "gunicorn.conf.py"]) == 2
        assert "prefork config --from-gunicorn gunicorn.conf.py" in capfd.readouterr().err
