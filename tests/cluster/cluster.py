"""Three machines, their balancer and their clients, each in a namespace of its own."""

from __future__ import annotations

import socket
import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, Self

import msgspec

from tests.cluster.load import Done, Order, results
from tests.cluster.machines import LINES, WEB, Machine
from tests.cluster.network import BALANCER, CLIENTS, MACHINES, Namespace, Network
from tests.support.server import environment

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

WORKERS: Final = 4
"""Of each machine, as prefork.toml has it."""

FRONT_LINES: Final = (BALANCER, LINES)
FRONT_WEB: Final = (BALANCER, WEB)


class Clients:
    """A load under way. ``done()`` waits for its end and returns what became of the requests."""

    def __init__(self, namespace: Namespace, path: Path, order: Order) -> None:
        self._path = path
        self._ceiling = order.seconds + order.deadline + 30
        text = msgspec.json.encode(order).decode()
        self._process = subprocess.Popen(
            [*namespace.enter, sys.executable, "-m", "tests.cluster.load", text, str(path)],
            stdin=subprocess.DEVNULL,
            env=environment(),
        )

    @property
    def is_under_way(self) -> bool:
        """Whether requests are still asked."""
        return self._process.poll() is None

    def done(self) -> list[Done]:
        """Wait for the last answer, and return all requests in the order of their ends."""
        assert self._process.wait(self._ceiling) == 0
        return results(self._path)

    def stop(self) -> None:
        """Have the load ask nothing more."""
        self._process.terminate()

    def end(self) -> None:
        """End the load where it is."""
        if self.is_under_way:
            self._process.kill()
        self._process.wait()


class Cluster:
    """``with Cluster(folder) as cluster:`` the network; ``boot()`` starts the machines. The end removes everything."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.machines: dict[str, Machine] = {}
        self._network = Network({"balancer": BALANCER, "clients": CLIENTS, **MACHINES})
        self._loads = 0
        self._ends = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as ends:
            ends.enter_context(self._network)
            ends.callback(self.shut_down)
            self._ends = ends.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ends.close()

    @property
    def balancer(self) -> Namespace:
        """The namespace of the balancer."""
        return self._network["balancer"]

    @property
    def clients(self) -> Namespace:
        """The namespace of the clients."""
        return self._network["clients"]

    def boot(self, *arguments: str, **more: Sequence[str]) -> None:
        """Start the pools anew, with these arguments. more: further ones of single machines, by name."""
        self.shut_down()
        for name in MACHINES:
            folder = self.folder / name
            folder.mkdir(exist_ok=True)
            own = [*more.get(name, ()), *arguments]
            self.machines[name] = Machine(self._network[name], folder, own)
        for machine in self.machines.values():
            machine.wait_ready()

    def shut_down(self) -> None:
        """End the pools, all at the same time."""
        for machine in self.machines.values():
            machine.begin_to_end()
        with ExitStack() as ends:
            while self.machines:
                ends.callback(self.machines.popitem()[1].end)

    def ask(self, order: Order) -> Clients:
        """Start a load; the end of the cluster ends it."""
        self._loads += 1
        load = Clients(self.clients, self.folder / f"load-{self._loads}", order)
        self._ends.callback(load.end)
        return load

    def cut(self, name: str) -> None:
        """Pull the cable of a machine."""
        self._network.cut(name)

    def mend(self, name: str) -> None:
        """Plug it in again."""
        self._network.mend(name)

    # Datagrams

    def route_datagrams(self) -> None:
        """Have the balancer's kernel hand on packets that are not for itself, as a router does."""
        command = [*self.balancer.enter, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"]
        subprocess.run(command, check=True)

    def ask_by_datagram(self, address: tuple[str, int]) -> str:
        """Return the answer to a datagram of a new client."""

        def ask() -> str:
            with socket.socket(type=socket.SOCK_DGRAM) as client:
                client.settimeout(5)
                client.connect(address)
                client.send(b"who")
                return client.recv(100).decode().strip()

        return self.clients.call(ask)
