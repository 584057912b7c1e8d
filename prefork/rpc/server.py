"""Servers of programs: the same ones on TCP, UDP and Unix sockets, at the same time if so wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, get_args

from prefork.host.process import process
from prefork.rpc.handler import RPCDatagramHandler, RPCStreamHandler
from prefork.rpc.program import Program, Programs
from prefork.rpc.registration import SOCKET, Mode, Registration, refuse_without_rpcbind
from prefork.rpc.replay import Replays
from prefork.rpc.rpcbind import entries_of, places_of
from prefork.servers import PreForkingTCPServer, PreForkingUDPServer, PreForkingUnixStreamServer
from prefork.workers.errors import SettingsError
from prefork.workers.units import seconds, size

LIMIT_MESSAGE: Final = 1 << 20
"""Bytes of a call on a stream, where the server says nothing else."""

UDP_BYTES: Final = 8800
"""Bytes of a call in a datagram: what the C libraries send at most."""


class _OfPrograms(PreForkingTCPServer if TYPE_CHECKING else object):  # type: ignore[misc]
    """What servers of programs have in common, in front of a server class. handler: for this kind."""

    handler: Any = RPCStreamHandler

    rpcbind: Mode = "off"
    rpcbind_socket: str = SOCKET

    def __init__(
        self,
        server_address: Any,
        programs: type[Program] | Iterable[type[Program]],
        bind_and_activate: bool = True,
    ) -> None:
        if self.rpcbind not in get_args(Mode):
            source = f"attribute {type(self).__name__}.rpcbind"
            raise SettingsError("rpcbind", self.rpcbind, source, "off, try or require")
        self.programs = Programs([programs] if isinstance(programs, type) else programs)
        super().__init__(server_address, self.handler, bind_and_activate)

    def make_announcement(self) -> Registration | None:
        """Return what registers the programs with rpcbind; None where that is off (master).

        RegistrationError: registration is required, and there is no rpcbind. After a reload the pool
        serves on in that case, and rpcbind is tried again.
        """
        if self.rpcbind == "off":
            return None
        mode = self.rpcbind
        if mode == "require" and process.handover is not None:
            mode = "try"
        elif mode == "require":
            refuse_without_rpcbind(self.rpcbind_socket)
        places = places_of(self.socket)
        entries = entries_of(self.programs.all, places)
        return Registration(entries, places, mode=mode, path=self.rpcbind_socket)


class _OnStreams(_OfPrograms):
    park_new: bool | str = True
    limit_message: int | str = LIMIT_MESSAGE
    message_timeout: float | str = 10.0

    def __init__(
        self,
        server_address: Any,
        programs: type[Program] | Iterable[type[Program]],
        bind_and_activate: bool = True,
    ) -> None:
        self.limit_message = _number(self, "limit_message", size, "a size, such as 65536 or 1M")
        self.message_timeout = _number(self, "message_timeout", seconds, "a time, such as 30 or 5s")
        super().__init__(server_address, programs, bind_and_activate)


def _number(server: Any, name: str, read: Callable[[object], object], allowed: str) -> Any:
    """Return a setting as a number above 0. SettingsError: the value is not such a number."""
    raw = getattr(server, name)
    try:
        value = read(raw)
    except ValueError:
        value = None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1 << 31:
        raise SettingsError(name, raw, f"attribute {type(server).__name__}.{name}", allowed)
    return value


class RPCServer(_OnStreams, PreForkingTCPServer):
    """A pre-forked server of ONC RPC on TCP: ``RPCServer(address, Adder)``, or with a list of programs.

    All settings of a pool are class attributes, as with the other servers. In addition:

    limit_message: most bytes of a call; a longer one ends its connection. message_timeout: seconds from
    the first byte of a call to its last one.

    rpcbind: whether the master registers the programs with rpcbind, from which clients learn the
    address: "off", "try" (the pool serves in any case, and tries again), or "require" (RegistrationError
    where rpcbind does not take them at the start). rpcbind_socket: where rpcbind listens.

    ``park_new`` is on: a client that connects and says nothing holds no worker.
    """


class UnixRPCServer(_OnStreams, PreForkingUnixStreamServer):
    """A pre-forked server of ONC RPC on a Unix stream socket; see ``RPCServer``."""


class UDPRPCServer(_OfPrograms, PreForkingUDPServer):
    """A pre-forked server of ONC RPC on UDP: ``UDPRPCServer(address, Adder)``.

    max_packet_size: most bytes of a call. limit_replays: calls that are remembered for a minute, by all
    workers, so that one that comes again is not executed again; 0 for none. limit_replay: most bytes of
    a reply that are remembered. rpcbind: as for ``RPCServer``.
    """

    handler: Any = RPCDatagramHandler
    max_packet_size = UDP_BYTES
    limit_replays: int = 16384
    limit_replay: int = 512

    replays: Replays | None = None

    def __init__(
        self,
        server_address: Any,
        programs: type[Program] | Iterable[type[Program]],
        bind_and_activate: bool = True,
    ) -> None:
        for name in ("limit_replays", "limit_replay"):
            self._refuse_number(name)
        super().__init__(server_address, programs, bind_and_activate)
        if self.limit_replays:
            self.replays = Replays(self.limit_replays, self.limit_replay)

    def _refuse_number(self, name: str) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 1 << 24:
            source = f"attribute {type(self).__name__}.{name}"
            raise SettingsError(name, value, source, "a whole number from 0 to 16777216")

    def server_close(self) -> None:
        """Close the server and its memory of calls."""
        super().server_close()
        if self.replays is not None:
            self.replays.close()
