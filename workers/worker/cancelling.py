"""Ending the request in hand: an exception that is raised in its handler (worker).

The master writes into the worker's slot which request is to end, and why, and sends a signal. Python calls
the handler of a signal in the main thread, between two bytecodes, wherever that thread is. If the thread is
in the handler of this request, then the signal handler raises RequestCancelled, and the exception comes out
of the line at which the handler was. In any other case nothing happens. The master asks again a little
later as long as the request is in hand (workers/pool/cancelling.py), so a moment that does not fit delays
an end and does not lose it.

A request pays nothing for this. Whether the exception may be raised is not noted on the way of a request:
the signal handler reads it from two things that are there anyway.

**Which request is in hand** is the slot's word REQUEST_NS: the number of the request. The master's word
names a number, and the two have to be equal. A request that ends sets its word to 0 or to the number of the
next one. So a signal that comes late finds another number, and the race between the end of a request and
the signal is decided by one comparison in the process that serves the request, with no code in between.

**Where the main thread is** is the stack of frames. Walking outwards from the frame that was interrupted,
the first frame of a known function decides (``_REGIONS``). ``BaseRequestHandler.__init__()`` calls
``setup()`` and ``handle()``, in which the exception may be raised, and ``finish()``, in which it must not
be; the number of the line says which call is under way. The innermost frame must not be one of prefork's
own, nor may there be a place on the way that swallows exceptions, such as an object's ``__del__()``. Some
such places have no frame that shows them; an exception that gets lost there is raised again (swallowed.py).
The edge (prefork/edge) has a deadline of its own, and is left alone.

Only the main thread can be reached, so requests that run in threads end at ``request_timeout``, with the
worker. The same holds for a call of C that does not return, because no bytecode runs meanwhile. A child of
``ForkingMixIn`` is reached by nothing: its request is over for the worker when the child is forked.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from socketserver import BaseRequestHandler, BaseServer
from time import monotonic_ns
from types import CodeType, FrameType, TracebackType
from typing import Any, Final

from prefork.workers import log, system
from prefork.workers.cancel import (
    FLAGS,
    CancelReason,
    RequestCancelled,
    exception_for,
    flags_in,
    word_of,
)
from prefork.workers.identity import CANCEL_NUMBER
from prefork.workers.slot_writer import CANCEL, CANCEL_HEARD, REQUEST_NS, SlotWriter
from prefork.workers.worker.clients import client_name
from prefork.workers.worker.limited_lines import LimitedLines
from prefork.workers.worker.swallowed import if_swallowed

ANSWER_TIME: Final = 1.0
"""Seconds that ``request_cancelled()`` has. After that RequestCancelled is raised in it, too."""

ANSWER_RETRY: Final = 0.05
"""Seconds after which that is tried again, where the moment did not fit."""

MOST_PLACES: Final = 5
"""Frames that the one line of the log shows, the innermost first."""

WAITING: Final = ("prefork.wsgi", "prefork.rpc.record")
"""Modules and packages of prefork that wait for clients, and that a request may be ended in."""

CO_COROUTINE: Final = 0x80
"""The flag of the code of an ``async def`` (inspect.CO_COROUTINE; the module takes milliseconds to import)."""

Region = Callable[[FrameType, FrameType], bool]
"""Says whether a handler runs: called with the frame of a known function and the one that it has called."""


# --- where the main thread is


def _code(function: Any) -> CodeType:
    found: CodeType = function.__code__
    return found


def _last_line(function: Any) -> int:
    return max(line for _, _, line in _code(function).co_lines() if line is not None)


def _unless_on_last_line(function: Any) -> Region:
    last = _last_line(function)
    return lambda frame, _called: frame.f_lineno != last


_REGIONS: Final[dict[CodeType, Region]] = {
    # The last line of each calls what comes after the handler: finish(), and shutdown_request().
    _code(BaseRequestHandler.__init__): _unless_on_last_line(BaseRequestHandler.__init__),
    _code(BaseServer.process_request): _unless_on_last_line(BaseServer.process_request),
    _code(BaseServer.finish_request): lambda _frame, _called: True,
}
"""What says of the functions that run a handler whether they are doing so."""


def add_region(function: Any, region: Region) -> None:
    """Name another function that runs handlers itself (at import time)."""
    _REGIONS[_code(function)] = region


def caller_of_handler(frame: FrameType) -> FrameType | None:
    """Return the frame that has called a handler; None where no handler would get an exception raised in this frame.

    The local variable ``request`` of the frame that is returned is what the handler serves.
    """
    if _is_ours(frame):
        return None
    called: FrameType | None = None
    here: FrameType | None = frame
    while here is not None:
        region = _REGIONS.get(here.f_code)
        if region is not None:
            return here if called is not None and region(here, called) else None
        if _swallows(here, called) or _is_of(here, "prefork.edge"):
            return None
        called, here = here, here.f_back
    return None


def _swallows(frame: FrameType, called: FrameType | None) -> bool:
    """Return whether an exception that comes out of what a frame has called would go no further.

    Python swallows what leaves a ``__del__()``. The event loop of ``asyncio`` swallows what leaves a callback;
    what leaves a coroutine goes to the task, and from there to the one that waits for the task. In a turn of
    the loop itself, the callback that was just taken off the queue would be lost, and with it the next step
    of a task, for which the loop would wait for ever at its end. Only its wait for events can be left.
    """
    name, module = frame.f_code.co_name, frame.f_globals.get("__name__")
    if name == "__del__":
        return True
    if name == "_run_once" and module == "asyncio.base_events":
        return called is None or called.f_code.co_name not in {"select", "_run"}
    if name == "_run" and module == "asyncio.events":
        return called is None or not called.f_code.co_flags & CO_COROUTINE
    return False


def _is_ours(frame: FrameType) -> bool:
    """Return whether a frame runs code of prefork, which nothing interrupts.

    The exception is code that waits for the client on behalf of the application: the handler of the WSGI
    server, and the records of an RPC server. Both close the connection where the wait does not end well.
    """
    return _is_of(frame, "prefork") and not any(_is_of(frame, one) for one in WAITING)


def _is_of(frame: FrameType, package: str) -> bool:
    """Return whether a frame runs code of this package."""
    name = frame.f_globals.get("__name__")
    return isinstance(name, str) and f"{name}.".startswith(f"{package}.")


def _places(frame: FrameType) -> Iterator[str]:
    here: FrameType | None = frame
    while here is not None and here.f_code not in _REGIONS:
        file = here.f_code.co_filename.rpartition("/")[2]
        yield f"{file}:{here.f_lineno} in {here.f_code.co_name}"
        here = here.f_back


def place_of(frame: FrameType) -> str:
    """Return the stack of a handler in one line, the innermost frame first."""
    places = [*_places(frame)]
    more = [f"{len(places) - MOST_PLACES} more"] if len(places) > MOST_PLACES else []
    return " < ".join([*places[:MOST_PLACES], *more])


# --- raising


class Cancelling:
    """What one worker does about requests that are asked to end. Everything runs in the main thread.

    client_gone: looks whether the client of a request has gone.
    """

    def __init__(
        self, writer: SlotWriter, client_gone: Callable[[Any], bool] | None = None
    ) -> None:
        self._writer = writer
        self._client_gone = client_gone
        self._request = 0
        """The request to which the two following belong."""
        self._raised = 0
        """The flags of the reasons for which an exception was raised in it."""
        self._shields = 0
        """How many ``shielded()`` blocks it is in."""
        self._answer_until = 0
        """When ``request_cancelled()`` has to be over, while it runs; 0 otherwise."""
        self._timer: system.Timer | None = None
        self._lines = LimitedLines()

    def interrupt(self, _number: int, frame: FrameType | None) -> None:
        """Raise RequestCancelled, if the request in hand is to end and may be interrupted here (signal handler)."""
        # Close to the limit of the stack this call itself can fail. The master asks again.
        try:
            error = self._answer_over(frame) or self._due(frame)
        except RecursionError:
            return
        if error is not None:
            raise error

    def _due(self, frame: FrameType | None) -> RequestCancelled | None:
        """Return what is to be raised in this frame; None for nothing. It is noted as raised."""
        words = self._writer.words
        request = words[REQUEST_NS]
        asked = flags_in(words[CANCEL], request)
        if not asked or frame is None:
            return None
        self._follow(request)
        new = asked & ~self._raised
        caller = None if not new or self._shields else caller_of_handler(frame)
        if caller is None:
            return None
        reasons = (one for one, flag in FLAGS.items() if new & flag)
        reason = next((one for one in reasons if self._is_so(one, caller)), None)
        if reason is None:
            return None
        self._raised |= FLAGS[reason]
        words[CANCEL_HEARD] = word_of(request, self._raised)
        error = exception_for(reason, place_of(frame))
        if_swallowed(error, functools.partial(self._forget_raised, request, FLAGS[reason]))
        return error

    def _forget_raised(self, request: int, flag: int) -> None:
        """Note that an exception did not reach the handler. The master asks again."""
        if request == self._request:
            self._raised &= ~flag
            self._writer.words[CANCEL_HEARD] = word_of(request, self._raised)

    def _follow(self, request: int) -> None:
        """Forget what was noted of another request."""
        if request != self._request:
            self._request, self._raised, self._shields = request, 0, 0

    def _is_so(self, reason: CancelReason, caller: FrameType) -> bool:
        if reason is not CancelReason.CLIENT_GONE:
            return True
        return self._client_gone is not None and self._client_gone(caller.f_locals.get("request"))

    # --- shields

    @property
    def is_shielded(self) -> bool:
        """Whether the request in hand is in such a block."""
        return self._shields > 0 and self._request == self._writer.words[REQUEST_NS]

    def shield(self) -> None:
        """Enter a block in which nothing is raised."""
        self._follow(self._writer.words[REQUEST_NS])
        self._shields += 1

    def unshield(self, frame: FrameType) -> None:
        """Leave such a block, and raise what came meanwhile. frame: the one that leaves the block."""
        self._follow(self._writer.words[REQUEST_NS])
        self._shields = max(0, self._shields - 1)
        error = self._due(frame)
        if error is not None:
            raise error

    # --- after the handler

    def end(self, server: Any, request: Any, address: Any, error: RequestCancelled) -> None:
        """Log that a request was cancelled, and let the server answer its client; raises no Exception.

        At level DEBUG each request has a line with the whole stack. Only in the main thread of the worker
        has the server a second for its answer: a thread, and a child that has been forked for the request,
        have no timer.

        Called where the handler has returned: in the lane, in the edge, in the thread of a request.
        """
        subject = self._lines.subject
        facts: dict[str, Any] = {
            "reason": error.reason,
            "client": client_name(address) or "-",
            "at": error.place or "-",
        }
        if log.is_wanted(log.logger, logging.DEBUG):
            log.failure(logging.DEBUG, subject, "request cancelled", error, **facts)
        self._lines.write(error.reason, "request cancelled", **facts)
        is_main = threading.current_thread() is threading.main_thread()
        with self._bounded() if is_main and not self._writer.is_detached else _unbounded:
            answer(subject, server, request, address, error.reason)

    @contextlib.contextmanager
    def _bounded(self) -> Iterator[None]:
        self._answer_until = monotonic_ns() + int(ANSWER_TIME * 1e9)
        self._set_timer(ANSWER_TIME)
        try:
            yield
        finally:
            self._answer_until = 0
            self._set_timer(0)

    def begin(self, subject: str) -> None:
        """Note who this worker is, for the log."""
        self._lines.subject = subject
        _of_this_process.append(self)

    def _answer_over(self, frame: FrameType | None) -> RequestCancelled | None:
        """Return what ends ``request_cancelled()``, if its time is over and it may be interrupted here."""
        if not self._answer_until or monotonic_ns() < self._answer_until:
            return None
        if frame is None or not _is_in_hook(frame):
            self._set_timer(ANSWER_RETRY)
            return None
        self._answer_until = 0
        error = RequestCancelled("request_cancelled() took too long")
        if_swallowed(error, self._end_answer_later)
        return error

    def _end_answer_later(self) -> None:
        self._answer_until = monotonic_ns()
        self._set_timer(ANSWER_RETRY)

    def _set_timer(self, seconds: float) -> None:
        # Made here, because most workers never need one.
        if self._timer is None:
            self._timer = system.Timer(CANCEL_NUMBER)
        self._timer.set(seconds)


_unbounded: Final = contextlib.nullcontext()


def answer(subject: str, server: Any, request: Any, address: Any, reason: CancelReason) -> None:
    """Have a server answer the client of a request that was cancelled; raises no Exception. subject: for the log."""
    try:
        _call_hook(server, request, address, reason)
    except RequestCancelled:
        after = f"{ANSWER_TIME:g} s"
        log.event(logging.WARNING, subject, "request_cancelled() was ended", after=after)
    except Exception as failure:  # noqa: BLE001 - costs this request, not the worker
        log.failure(logging.ERROR, subject, "request_cancelled() raised", failure)


def _call_hook(server: Any, request: Any, address: Any, reason: CancelReason) -> None:
    server.request_cancelled(request, address, reason)


def _is_in_hook(frame: FrameType) -> bool:
    if _is_ours(frame):
        return False
    here: FrameType | None = frame
    while here is not None:
        if here.f_code is _call_hook.__code__:
            return True
        here = here.f_back
    return False


def end_cancelled(server: Any, request: Any, address: Any, error: RequestCancelled) -> bool:
    """End a cancelled request as ``Cancelling.end()`` does; return False outside of a worker.

    Called by the edge, which knows the socket and the address that the handler had, and where requests
    overlap.
    """
    if not _of_this_process:
        return False
    _of_this_process[-1].end(server, request, address, error)
    return True


def is_shielded() -> bool:
    """Return whether the request in hand of this process is in a block in which nothing is raised."""
    return bool(_of_this_process) and _of_this_process[-1].is_shielded


# --- for handlers


class _Shield:
    def __init__(self) -> None:
        self._cancelling: Cancelling | None = None

    def __enter__(self) -> None:
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and _of_this_process:
            self._cancelling = _of_this_process[-1]
            self._cancelling.shield()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        cancelling, self._cancelling = self._cancelling, None
        if cancelling is not None:
            cancelling.unshield(sys._getframe(1))  # noqa: SLF001 - there is no other way to the caller


def shielded() -> contextlib.AbstractContextManager[None]:
    """Return a context in which the request in hand is not cancelled (worker, main thread).

    What came meanwhile is raised at the end of the block. ``request_timeout`` holds in the block, too.
    In another thread, and outside of a worker, the context has no effect.
    """
    return _Shield()


_of_this_process: Final[list[Cancelling]] = []
"""What this process is: the last one counts. A worker that serves a pool of its own forks others."""
