"""Machines of a network, on one machine: a network namespace each, joined by a bridge.

A namespace of the kernel has interfaces, addresses, routes and ports of its own. It lives as long as something refers
to it. Here that is a descriptor of this process, not a name in the file system, so that the end of this process, however
it comes, takes the namespaces and their cables along, once the processes in them have ended.

A namespace belongs to a thread. So a namespace is made, and a socket in it opened, by a thread that enters it and ends.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

Result = TypeVar("Result")

_CLONE_NEWNET: Final = 0x40000000

NETWORK: Final = "10.20.0"
BALANCER: Final = f"{NETWORK}.2"
CLIENTS: Final = f"{NETWORK}.100"
MACHINES: Final = {f"h{number}": f"{NETWORK}.{10 + number}" for number in (1, 2, 3)}
"""The names and addresses that the files of examples/cluster have."""


class Namespace:
    """One network namespace with an address, at the bridge of a ``Network``."""

    def __init__(self, name: str, address: str, fd: int) -> None:
        self.name = name
        self.address = address
        self.fd = fd

    @property
    def enter(self) -> list[str]:
        """The words before a command that runs in here. They start no process of their own."""
        return ["nsenter", f"--net=/proc/{os.getpid()}/fd/{self.fd}", "--"]

    def call(self, function: Callable[[], Result]) -> Result:
        """Return what a function returns that runs in here, such as one that opens a socket."""
        return _in_a_thread(lambda: _entered(self.fd, function))


class Network:
    """``with Network(...) as network:`` the namespaces, cabled up; the end of the block removes them.

    addresses: by name. Each becomes a namespace; all are at one bridge, which is in a namespace of its own.
    """

    def __init__(self, addresses: dict[str, str]) -> None:
        self.namespaces: dict[str, Namespace] = {}
        self._addresses = addresses
        self._ends = ExitStack()
        self._switch = -1

    def __enter__(self) -> Self:
        with ExitStack() as ends:
            self._switch = _new_namespace(ends)
            _configure(self._switch, ["link add bridge type bridge", "link set bridge up"])
            for name, address in self._addresses.items():
                namespace = Namespace(name, address, _new_namespace(ends))
                self._plug_in(namespace)
                self.namespaces[name] = namespace
            self._ends = ends.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ends.close()

    def __getitem__(self, name: str) -> Namespace:
        return self.namespaces[name]

    def cut(self, name: str) -> None:
        """Pull the cable of a namespace: what is sent to it is lost, and nothing comes back."""
        _configure(self._switch, [f"link set port-{name} nomaster"])

    def mend(self, name: str) -> None:
        """Plug the cable in again."""
        _configure(self._switch, [f"link set port-{name} master bridge"])

    def _plug_in(self, one: Namespace) -> None:
        own = f"/proc/{os.getpid()}/fd/{one.fd}"
        _configure(
            self._switch,
            [
                f"link add port-{one.name} type veth peer name cable netns {own}",
                f"link set port-{one.name} master bridge up",
            ],
        )
        _configure(
            one.fd,
            [
                "link set lo up",
                f"address add {one.address}/24 dev cable",
                "link set cable up",
            ],
        )


@functools.cache
def why_not() -> str:
    """Return why there can be no network namespaces here, "" if there can."""
    if os.geteuid() != 0:
        return "only root can make network namespaces"
    for program in ("ip", "nsenter"):
        if shutil.which(program) is None:
            return f"{program} is not installed (Debian's packages iproute2 and util-linux)"
    try:
        with Network({"try": "10.20.1.1"}):
            return ""
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or error
        return f"no network namespaces here: {said}".strip()


def _new_namespace(ends: ExitStack) -> int:
    fd = _in_a_thread(_unshared)
    ends.callback(os.close, fd)
    return fd


def _unshared() -> int:
    _check(ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET))
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _entered(fd: int, function: Callable[[], Result]) -> Result:
    _check(ctypes.CDLL(None, use_errno=True).setns(fd, _CLONE_NEWNET))
    return function()


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _in_a_thread(function: Callable[[], Result]) -> Result:
    """Return what a function returns in a thread of its own, whose namespace ends with it."""
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _configure(fd: int, lines: list[str]) -> None:
    """Give orders to the command ip in a namespace."""
    subprocess.run(
        ["nsenter", f"--net=/proc/{os.getpid()}/fd/{fd}", "--", "ip", "-batch", "-"],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        check=True,
    )
