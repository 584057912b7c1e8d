"""The exceptions of prefork: a leaf, so that no module needs an import inside a function.

The library raises them; only the command line turns them into exit codes.
"""

from __future__ import annotations


class PreforkError(Exception):
    """Whatever prefork itself refuses or gives up; its text is one line made for a person."""


class SettingsError(PreforkError, ValueError):
    """A setting has a value that cannot be; raised before anything is bound or forked.

    key, value: what was given. source: where it came from ("flag --workers",
    "environment PREFORK_WORKERS", "prefork.toml", "attribute Prime.workers").
    allowed: what may stand there instead.
    """

    def __init__(self, key: str, value: object, source: str, allowed: str) -> None:
        super().__init__(f"{key} = {value!r} (from {source}) is refused: {allowed}")
        self.key = key
        self.value = value
        self.source = source
        self.allowed = allowed


class TargetError(PreforkError):
    """The target names no module, no attribute, or nothing that can be served."""

    def __init__(self, target: str, reason: str) -> None:
        super().__init__(f"target {target!r}: {reason}")
        self.target = target
        self.reason = reason


class BindError(PreforkError):
    """An address cannot be bound, or an inherited descriptor cannot be used as a listener."""

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(f"cannot listen on {address}: {reason}")
        self.address = address
        self.reason = reason


class BootError(PreforkError):
    """The application cannot boot: it raised while it was loaded, or its first workers died before ready.

    report: the traceback of the application or of the first worker, "" where there is none.
    """

    def __init__(self, message: str, report: str = "") -> None:
        super().__init__(message)
        self.report = report


class CrashLoopError(PreforkError):
    """New workers die again and again, and the settings say to give up then.

    report: the last words of the last one.
    """

    def __init__(self, message: str, report: str = "") -> None:
        super().__init__(message)
        self.report = report
