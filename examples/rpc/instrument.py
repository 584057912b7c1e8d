"""A measuring instrument on the network: VXI-11, which is two programs of ONC RPC, around commands of SCPI.

    # python examples/rpc/instrument.py        # rpcbind has to run: clients ask it for the port
    $ python
    >>> import pyvisa                          # pip install pyvisa-py
    >>> meter = pyvisa.ResourceManager("@py").open_resource("TCPIP::127.0.0.1::INSTR")
    >>> meter.query("*IDN?")
    'prefork,multimeter,0,1'

A connection may be served by another worker at each call. So what a *link* knows, which is the answer
that its client has not read yet, is the state of the connection.
"""

import sys

from prefork.rpc import Program, RPCServer, procedure, xdr

OUT_OF_RESOURCES, INVALID_LINK, NOT_SUPPORTED, TIMEOUT = 9, 4, 8, 15
REQUEST_COUNT, TERM_CHAR, END = 1, 2, 4
USE_TERM_CHAR = 0x80
LINK = 1
"""The number of the only link of a connection."""


def answer(command: str) -> str:
    if command == "*IDN?":
        return "prefork,multimeter,0,1\n"
    if command == "MEAS:VOLT?":
        return "+1.23400E+00\n"
    if command.startswith("ECHO? "):
        return command.removeprefix("ECHO? ") + "\n"
    return ""


class Core(Program):
    """The core channel. The state is b"" without a link, else a mark and what is to be read."""

    number, version = 0x0607AF, 1

    @procedure(10)
    def create_link(
        self, _client: xdr.int32, _lock: bool, _wait: xdr.uint32, _device: str
    ) -> tuple[xdr.int32, xdr.int32, xdr.uint32, xdr.uint32]:
        if self.state:
            return OUT_OF_RESOURCES, 0, 0, 0
        self.state = b">"
        return 0, LINK, self.server.server_address[1], 1024

    @procedure(11)
    def device_write(
        self, link: xdr.int32, _io: xdr.uint32, _wait: xdr.uint32, _flags: xdr.int32, data: bytes
    ) -> tuple[xdr.int32, xdr.uint32]:
        if not self.is_linked(link):
            return INVALID_LINK, 0
        for line in data.decode("ascii", "replace").splitlines():
            self.state = b">" + (answer(line.strip()).encode() or self.state[1:])[:1024]
        return 0, len(data)

    @procedure(12)
    def device_read(
        self,
        link: xdr.int32,
        size: xdr.uint32,
        _io: xdr.uint32,
        _wait: xdr.uint32,
        flags: xdr.int32,
        term_char: xdr.int32,
    ) -> tuple[xdr.int32, xdr.int32, bytes]:
        if not self.is_linked(link):
            return INVALID_LINK, 0, b""
        data = self.state[1 : 1 + size]
        if not data:
            return TIMEOUT, 0, b""
        reason = 0
        if flags & USE_TERM_CHAR and (end := data.find(term_char & 255) + 1):
            data, reason = data[:end], TERM_CHAR
        self.state = b">" + self.state[1 + len(data) :]
        if len(data) == size:
            reason |= REQUEST_COUNT
        if self.state == b">":
            reason |= END
        return 0, reason, data

    @procedure(13)
    def device_readstb(
        self, link: xdr.int32, _flags: xdr.int32, _wait: xdr.uint32, _io: xdr.uint32
    ) -> tuple[xdr.int32, xdr.uint32]:
        message_available = 0x10 if len(self.state) > 1 else 0
        return (0, message_available) if self.is_linked(link) else (INVALID_LINK, 0)

    @procedure(14)
    def device_trigger(
        self, link: xdr.int32, _flags: xdr.int32, _wait: xdr.uint32, _io: xdr.uint32
    ) -> xdr.int32:
        return 0 if self.is_linked(link) else INVALID_LINK

    @procedure(15)
    def device_clear(
        self, link: xdr.int32, _flags: xdr.int32, _wait: xdr.uint32, _io: xdr.uint32
    ) -> xdr.int32:
        if not self.is_linked(link):
            return INVALID_LINK
        self.state = b">"
        return 0

    @procedure(22)
    def device_docmd(
        self,
        _link: xdr.int32,
        _flags: xdr.int32,
        _io: xdr.uint32,
        _wait: xdr.uint32,
        _command: xdr.int32,
        _order: bool,
        _size: xdr.int32,
        _data: bytes,
    ) -> tuple[xdr.int32, bytes]:
        return NOT_SUPPORTED, b""

    @procedure(23)
    def destroy_link(self, link: xdr.int32) -> xdr.int32:
        if not self.is_linked(link):
            return INVALID_LINK
        self.state = b""
        return 0

    def is_linked(self, link: int) -> bool:
        return bool(self.state) and link == LINK


class Abort(Program):
    """The abort channel, on the port of the core channel. No operation here takes long enough."""

    number, version = 0x0607B0, 1

    @procedure(1)
    def device_abort(self, link: xdr.int32) -> xdr.int32:
        return 0 if link == LINK else INVALID_LINK


class Instrument(RPCServer):
    workers = 2
    rpcbind = "require"


if __name__ == "__main__":
    host = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1"
    with Instrument((host, 0), [Core, Abort]) as server:
        server.serve_forever()
