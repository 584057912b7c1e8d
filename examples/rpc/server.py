"""A program of ONC RPC on TCP, UDP and a Unix socket, served by one pool.

$ python examples/rpc/server.py            # in one terminal
$ rpcinfo -T tcp -a 127.0.0.1.156.65 536870978 1
$ python examples/rpc/client.py 6 7
"""

import sys

import prefork
from prefork.rpc import Program, RPCServer, UDPRPCServer, UnixRPCServer, procedure, xdr


class Calculator(Program):
    number, version = 0x20000042, 1

    @procedure(1)
    def add(self, a: xdr.int32, b: xdr.int32) -> xdr.int32:
        return a + b

    @procedure(2)
    def mean(self, values: list[xdr.float64]) -> xdr.float64 | None:
        return sum(values) / len(values) if values else None

    @procedure(3)
    def whoami(self) -> str:
        return str(getattr(self.client_address, "identity", None))


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 40001
    path = sys.argv[2] if len(sys.argv) > 2 else "/tmp/calculator.sock"  # noqa: S108 - an example
    with (
        RPCServer(("127.0.0.1", port), Calculator) as tcp,
        UDPRPCServer(tcp.server_address, Calculator) as udp,
        UnixRPCServer(path, Calculator) as unix,
    ):
        print(f"tcp and udp: {tcp.server_address}, unix: {path}", flush=True)
        prefork.serve(tcp, udp, unix)
