"""A program of ONC RPC on TCP, UDP and a Unix socket, served by one pool.

$ python examples/rpc/server.py 40001 /tmp/calculator.sock      # in one terminal
$ rpcinfo -T tcp -a 127.0.0.1.156.65 536870978 1
$ ./client tcp 127.0.0.1 40001 6 7         # client.c says how it is built
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


class TCP(RPCServer):
    workers = 2
    rpcbind = "try"


class UDP(UDPRPCServer):
    rpcbind = "try"


class Unix(UnixRPCServer):
    rpcbind = "try"


if __name__ == "__main__":
    port, path = int(sys.argv[1]), sys.argv[2]
    with (
        TCP(("127.0.0.1", port), Calculator) as tcp,
        UDP(tcp.server_address, Calculator) as udp,
        Unix(path, Calculator) as unix,
    ):
        print(f"port {tcp.server_address[1]}", flush=True)
        prefork.serve(tcp, udp, unix)
