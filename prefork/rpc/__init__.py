"""ONC RPC version 2 (RFC 5531), which is also called Sun RPC, served by a pool: ``RPCServer(address, Adder)``.

Programs are classes, their procedures are methods, and the types of XDR (RFC 4506) are annotations.
"""
