"""The exceptions of prefork (a leaf).

The library raises them and never exits. The command line turns them into exit codes.
"""

from __future__ import annotations

from typing import Any

from prefork.workers.text import printable


class PreforkError(Exception):
    """The base of all exceptions that prefork raises. Its text is one line, made for a person.

    The exceptions can be pickled and copied, for example by a program that starts its servers in processes.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception is otherwise made again by calling its class with its text, which is not
        # what these classes take.
        return _made_again, (type(self), self.args), self.__dict__


def _made_again(kind: type[PreforkError], args: tuple[Any, ...]) -> PreforkError:
    return kind.__new__(kind, *args)


class SettingsError(PreforkError, ValueError):
    """A setting has a value that is not allowed. Raised before anything is bound or forked.

    key, value: the setting, and the value that was given. source: where the value came from, such
    as "flag --workers", "environment PREFORK_WORKERS", "prefork.toml" or "attribute Prime.workers".
    allowed: the values that are allowed.
    """

    def __init__(self, key: str, value: object, source: str, allowed: str) -> None:
        super().__init__(printable(f"{key} = {value!r} (from {source}) is refused: {allowed}"))
        self.key = key
        self.value = value
        self.source = source
        self.allowed = allowed


class MisuseError(PreforkError, TypeError):
    """A class uses the mix-in in a way that cannot work. Raised when the class is made."""


class TargetError(PreforkError):
    """The target of a command does not exist, or is nothing that can serve."""

    def __init__(self, target: str, reason: str) -> None:
        super().__init__(printable(f"target {target!r}: {reason}"))
        self.target = target
        self.reason = reason


class MissingPackageError(PreforkError, ImportError):
    """A part of prefork needs a package that is not installed; the text says which, and how to install it."""

    def __init__(self, part: str, package: str, extra: str) -> None:
        super().__init__(
            f"{part} needs the package {package}; install it by pip install 'prefork[{extra}]'"
        )


class AuthenticationError(PreforkError):
    """A client has not proved who it is. ``authenticate()`` of a server raises it to refuse the client.

    The text goes to the log, and the client does not see it.
    """


class BindError(PreforkError):
    """An address cannot be bound, or an inherited descriptor cannot be used as a listener."""

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(printable(f"cannot listen on {address}: {reason}"))
        self.address = address
        self.reason = reason


class BootError(PreforkError):
    """Loading the application failed, or its first workers died before they were ready.

    report: the traceback of the application or of the first worker; "" where there is none.
    """

    def __init__(self, message: str, report: str = "") -> None:
        super().__init__(message)
        self.report = report


class CrashLoopError(PreforkError):
    """New workers died again and again, and ``crash_loop`` says to give up then.

    report: the traceback or the stacks of the worker that died last.
    """

    def __init__(self, message: str, report: str = "") -> None:
        super().__init__(message)
        self.report = report
