"""docs/OPERATING.md: what the page says of upgrades, and its configurations of HAProxy and nginx."""

from __future__ import annotations

import re
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from tests.support.clients import TIMEOUT, ask, read_all
from tests.support.documents import DOCS
from tests.support.engines import NGINX_ALONE, NGINX_FOLDERS, needs, running
from tests.support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.server import Program

APPLICATION = """
import prefork

class Version(prefork.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"{version}")
"""


@pytest.mark.parametrize("way", ["--chdir", "TARGET", "working directory"])
def test_link_to_the_folder_of_the_code(
    start: Callable[..., Program], tmp_path: Path, way: str
) -> None:
    """A reload follows a symbolic link in --chdir and in TARGET, but not one in the working directory."""
    for version in ("first", "second"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "app.py").write_text(APPLICATION.format(version=version))
    current = tmp_path / "current"
    current.symlink_to("first")
    arguments = {
        "--chdir": ["--chdir", str(current), "app.py:Version"],
        "TARGET": [f"{current}/app.py:Version"],
        "working directory": ["app.py:Version"],
    }[way]
    before = ["env", "-C", str(current)] if way == "working directory" else []
    program = start(
        None,
        before=before,
        arguments=["-m", "prefork", "run", *arguments, "--bind", "127.0.0.1:0", "--workers", "1"],
    )
    program.wait_logged("master .*ready workers=1")
    port = re.search(r"listeners=tcp://127\.0\.0\.1:(\d+)", program.log)
    assert port is not None
    address = ("127.0.0.1", int(port[1]))
    assert ask(address) == "first"

    current.unlink()
    current.symlink_to("second")
    program.signal(signal.SIGHUP)
    program.wait_logged("master reloaded generation=1")

    assert ask(address) == ("first" if way == "working directory" else "second")


ABOUT_CLIENT = """
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{environ['REMOTE_ADDR']} {environ['HTTP_HOST']}".encode()]
"""

AROUND = (
    NGINX_ALONE
    + """
events {{}}
http {{
"""
    + NGINX_FOLDERS
    + """
    {page}
}}
"""
)


CLIENT_AND_HOST = """
import prefork

class Shop(prefork.StreamRequestHandler):
    def handle(self):
        self.wfile.write(f"{self.client_address[0]} {self.server.server_address[1]}".encode())
"""


def test_haproxy_of_the_page(start: Callable[..., Program], tmp_path: Path) -> None:
    """Behind HAProxy, set up as the page says, a handler knows the address of its client."""
    engine = needs("haproxy")
    text = (DOCS / "OPERATING.md").read_text(encoding="utf-8")
    (page,) = re.findall(r"^```text\n(defaults\n.*?)^```$", text, re.DOTALL | re.MULTILINE)
    (tmp_path / "shop.py").write_text(CLIENT_AND_HOST)
    behind, port = free_port(), free_port()
    command = ["-m", "prefork", "run", "shop.py:Shop", "--bind", f"127.0.0.1:{behind}"]
    program = start(None, arguments=[*command, "-w", "1", "--proxy-from", "127.0.0.1"])
    program.wait_logged("master .*ready workers=1")
    page = page.replace("127.0.0.1:9000", f"127.0.0.1:{behind}").replace(
        "bind :80", f"bind 127.0.0.1:{port}"
    )
    config = tmp_path / "haproxy.cfg"
    config.write_text(page)

    with running([engine, "-db", "-f", str(config)], tmp_path, port):
        source = ("127.0.0.7", 0)
        with socket.create_connection(("127.0.0.1", port), TIMEOUT, source) as client:
            assert read_all(client) == f"127.0.0.7 {behind}"


def test_nginx_of_the_page(start: Callable[..., Program], tmp_path: Path) -> None:
    """Behind nginx, set up as the page says, an application knows its clients and the host that they have asked for."""
    engine = needs("nginx")
    text = (DOCS / "OPERATING.md").read_text(encoding="utf-8")
    (page,) = re.findall(r"^```text\n(upstream .*?)^```$", text, re.DOTALL | re.MULTILINE)
    (tmp_path / "app.py").write_text(ABOUT_CLIENT)
    where = tmp_path / "socket"
    command = ["-m", "prefork", "run", "app.py:application", "--bind", f"unix:{where}"]
    program = start(None, arguments=[*command, "-w", "1", "--forwarded-from", "unix"])
    program.wait_logged("master .*ready workers=1")
    port = free_port()
    page = page.replace("/run/shop/socket", str(where)).replace(
        "listen 80", f"listen 127.0.0.1:{port}"
    )
    config = tmp_path / "nginx.conf"
    config.write_text(AROUND.format(folder=tmp_path, page=page))

    request = "GET / HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\nX-Forwarded-For: 6.6.6.6\r\n\r"
    with running([engine, "-c", str(config)], tmp_path, port):
        for _ in range(3):
            assert ask(("127.0.0.1", port), request).endswith("\n127.0.0.1 shop.example")
