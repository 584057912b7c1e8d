"""A bounded pool of pre-forked workers for the servers of the standard library's ``socketserver``.

Every public name of ``socketserver`` is a name of this module, too. So a program changes its import
and one base class, and keeps its handlers.
"""

import socketserver
from socketserver import *  # noqa: F403 - the names that the running Python has

from prefork._version import __version__
from prefork.mixin import PreForkingMixIn, serve
from prefork.servers import (
    PreForkingTCPServer,
    PreForkingUDPServer,
    PreForkingUnixDatagramServer,
    PreForkingUnixStreamServer,
)
from prefork.workers.errors import (
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

__all__ = [  # noqa: PLE0604 - the first part depends on the running Python
    *socketserver.__all__,
    "BindError",
    "BootError",
    "CrashLoopError",
    "ExitCause",
    "ExitKind",
    "MisuseError",
    "PreForkingMixIn",
    "PreForkingTCPServer",
    "PreForkingUDPServer",
    "PreForkingUnixDatagramServer",
    "PreForkingUnixStreamServer",
    "PreforkError",
    "Settings",
    "SettingsError",
    "TargetError",
    "WorkerInfo",
    "__version__",
    "serve",
]
