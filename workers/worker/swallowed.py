"""Exceptions that Python swallows: a signal handler learns of it, and can raise again (worker, main thread).

A signal handler raises in whatever Python code the main thread runs. Some code is called by the
interpreter itself, at a moment at which no caller could take an exception: the ``finally`` clause of a
generator that is thrown away, the callback of a weak reference, a callback of the garbage collector, a
function of Python that a library calls by ``ctypes``. Python reports what such code raises to
``sys.unraisablehook()``, and goes on. The frames do not say that an exception would end there.

So the exception is raised, and takes along what is to be done if it gets lost (``if_swallowed()``). The
hook does that, and leaves any other exception to the hook that it found.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final

_AGAIN: Final = "_prefork_again"
"""The attribute of an exception with what is to be done if it is swallowed."""


def if_swallowed(error: BaseException, again: Callable[[], None]) -> None:
    """Have ``again()`` called if Python swallows this exception, which is about to be raised.

    again: raises nothing. The call is made where the exception got lost, so it must not wait.
    """
    try:
        setattr(error, _AGAIN, again)
    except Exception:  # noqa: BLE001 - an exception of the program that has no such attribute
        return
    # At each exception: the program may have installed a hook of its own since the last one.
    if not isinstance(sys.unraisablehook, _Hook):
        sys.unraisablehook = _Hook(sys.unraisablehook)


class _Hook:
    """A hook in front of another one. A hook that the program installs later may call this one."""

    def __init__(self, other: Callable[[Any], Any]) -> None:
        self._other = other

    def __call__(self, unraisable: Any, /) -> None:
        again = getattr(unraisable.exc_value, _AGAIN, None)
        if again is None:
            self._other(unraisable)
        else:
            again()
