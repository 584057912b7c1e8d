"""Programs of others that tests drive: proxies, and clients of the shell."""

from __future__ import annotations

import shutil
import socket
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


NGINX_ALONE = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
"""
"""What the configuration of an nginx begins with that runs in the foreground, and writes to its folder only."""

NGINX_FOLDERS = """
    access_log off;
    client_body_temp_path {folder}/bodies;
    proxy_temp_path {folder}/answers;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
"""
"""The same for its block ``http``."""


def needs(program: str) -> str:
    """Return the path of a program; skip the test where it is missing."""
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
    if path is None:
        pytest.skip(f"{program} is not installed; .ci/run installs it on Debian")
    return path


@contextmanager
def running(command: list[str], folder: Path, *ports: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program in the foreground, wait until it listens on these ports, and end it afterwards."""
    with (folder / "engine.log").open("wb") as log:
        engine = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        for port in ports:
            wait_until(
                lambda port=port: engine.poll() is not None or _listens(port),
                lambda port=port: f"{command[0]} listens on {port}",
            )
        assert engine.poll() is None, (folder / "engine.log").read_text()
        yield engine
    finally:
        engine.terminate()
        try:
            engine.wait(10)
        except subprocess.TimeoutExpired:
            engine.kill()
            engine.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
