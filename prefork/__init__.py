"""A bounded pool of pre-forked workers for the servers of the standard library's ``socketserver``.

Change one base class, and keep the handlers::

    import prefork

    class Upper(prefork.StreamRequestHandler):
        def handle(self):
            self.wfile.write(self.rfile.readline().upper())

    with prefork.PreForkingTCPServer(("127.0.0.1", 9000), Upper) as server:
        server.serve_forever()

Servers:
    PreForkingTCPServer, PreForkingUDPServer, PreForkingUnixStreamServer,
    PreForkingUnixDatagramServer: ready-made
    PreForkingMixIn: put it in front of any other server class
    serve(): serve several servers with one pool

Who may connect (docs/EDGE.md):
    ProxyProtocolMixIn: learn from proxies who their clients are
    AccessMixIn: rules about the addresses of clients
    TLSMixIn: encrypt connections, and ask clients for certificates
    AuthenticationMixIn: have a server's clients prove who they are
    PeerCredentialsMixIn, HMACMixIn: two ready ways to do so
    ClientAddress: what handlers get as client_address behind an edge

Settings:
    Class attributes of the server. help(prefork.Settings) describes each of them.
    Settings: the same as one value, for serve()

Connections that stay open between two requests (docs/PARKING.md):
    ParkingMixIn: put it in front of a handler class, so that an idle connection holds no worker

Requests that are asked to end (docs/CANCELLING.md):
    RequestCancelled: what is raised in the handler; RequestTimeout, CPUTimeExceeded and ClientGone
    are kinds of it
    CancelReason: what request_cancelled() of the server is given
    shielded(): a block that is not interrupted
    UrgentMixIn: hear of urgent data of the client in a handler

In a handler or a hook:
    current_worker(): the worker that the code runs in (ThisWorker), None in the master
    is_stopping(): whether that worker was asked to leave
    WorkerInfo, ExitCause, ExitKind: what the hooks of the mix-in are given

At a reload:
    on_trial(): whether this process only tries new code, while the live process serves

Errors, all of them a PreforkError:
    AuthenticationError: what authenticate() raises to refuse a client
    SettingsError, MisuseError, TargetError: wrong before anything was bound or forked
    BindError, BootError, CrashLoopError: what serve_forever() raises

Every public name of ``socketserver`` is a name of this module, too, so that ``import prefork as
socketserver`` is a valid first step. The command ``prefork`` serves a handler class as it is:
``prefork --help``.
"""

import socketserver
from socketserver import *  # noqa: F403 - the names that the running Python has

from prefork._version import __version__
from prefork.edge.client import ClientAddress
from prefork.edge.mixins import (
    AccessMixIn,
    AuthenticationMixIn,
    HMACMixIn,
    PeerCredentialsMixIn,
    ProxyProtocolMixIn,
    TLSMixIn,
)
from prefork.host.process import on_trial
from prefork.mixin import PreForkingMixIn, serve
from prefork.parking.handler import ParkingMixIn
from prefork.servers import (
    PreForkingTCPServer,
    PreForkingUDPServer,
    PreForkingUnixDatagramServer,
    PreForkingUnixStreamServer,
)
from prefork.urgent import UrgentMixIn
from prefork.workers.cancel import (
    CancelReason,
    ClientGone,
    CPUTimeExceeded,
    RequestCancelled,
    RequestTimeout,
)
from prefork.workers.errors import (
    AuthenticationError,
    BindError,
    BootError,
    CrashLoopError,
    MisuseError,
    PreforkError,
    SettingsError,
    TargetError,
)
from prefork.workers.identity import WorkerInfo
from prefork.workers.settings import Settings
from prefork.workers.states import ExitCause, ExitKind
from prefork.workers.worker.cancelling import shielded
from prefork.workers.worker.side import ThisWorker, current_worker, is_stopping

__all__ = [  # noqa: PLE0604 - the first part depends on the running Python
    *socketserver.__all__,
    "AccessMixIn",
    "AuthenticationError",
    "AuthenticationMixIn",
    "BindError",
    "RequestTimeout",
    "RequestCancelled",
    "ClientGone",
    "CancelReason",
    "CPUTimeExceeded",
    "BootError",
    "ClientAddress",
    "CrashLoopError",
    "ExitCause",
    "ExitKind",
    "MisuseError",
    "HMACMixIn",
    "ParkingMixIn",
    "PeerCredentialsMixIn",
    "PreForkingMixIn",
    "PreForkingTCPServer",
    "PreForkingUDPServer",
    "PreForkingUnixDatagramServer",
    "PreForkingUnixStreamServer",
    "PreforkError",
    "ProxyProtocolMixIn",
    "Settings",
    "SettingsError",
    "TLSMixIn",
    "TargetError",
    "ThisWorker",
    "UrgentMixIn",
    "WorkerInfo",
    "__version__",
    "current_worker",
    "is_stopping",
    "on_trial",
    "serve",
    "shielded",
]
