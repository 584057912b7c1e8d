"""ONC RPC version 2 (RFC 5531), which is also called Sun RPC, served by a pool: ``RPCServer(address, Adder)``.

Programs are classes, their procedures are methods, and the types of XDR (RFC 4506) are annotations.
"""

from __future__ import annotations

from prefork.rpc import xdr
from prefork.rpc.handler import ProcedureError
from prefork.rpc.message import AcceptStatus, AuthStatus, AuthSys, Flavor
from prefork.rpc.program import Program, Refusal, procedure
from prefork.rpc.registration import RegistrationError
from prefork.rpc.server import RPCServer, UDPRPCServer, UnixRPCServer

__all__ = [
    "AcceptStatus",
    "AuthStatus",
    "AuthSys",
    "Flavor",
    "ProcedureError",
    "Program",
    "RPCServer",
    "Refusal",
    "RegistrationError",
    "UDPRPCServer",
    "UnixRPCServer",
    "procedure",
    "xdr",
]
