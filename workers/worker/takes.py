"""What a worker does about takes that fail: nothing, a pause, one log line, or its end (worker)."""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable
from socketserver import ForkingMixIn, ThreadingMixIn
from types import CodeType, TracebackType

from prefork.workers import log
from prefork.workers.scoreboard import SlotField
from prefork.workers.slot_writer import ORDER, SlotWriter
from prefork.workers.states import Order
from prefork.workers.worker.shortage import Meaning
from prefork.workers.worker.source import Source

FRUITLESS_BOUND = 1024
"""Points after which a worker pauses, because a descriptor stays readable and brings nothing."""

FRUITLESS_TRY = 64
"""Points for a take that found nothing. A take that failed has usually used up a client, and gives one point."""

_DRAIN = int(Order.DRAIN)  # an enum's look-up costs as much as a frame


class Takes:
    """How the takes of one worker go, over all its sources.

    A take that finds nothing is normal, and so is a client that is gone. Both must not become a
    loop that never ends: a listener can stay readable although no take brings anything. So each
    failed take gives points, a take that succeeds clears them, and at FRUITLESS_BOUND the worker
    pauses between two takes. It pauses at once where the next take is known to fail, for lack of
    descriptors or memory. Then the source is *stalled*: the log has one line when that begins and
    one when it ends, however often the worker tries in between.
    """

    def __init__(self, writer: SlotWriter) -> None:
        self.fruitless = 0
        """The points. Not 0 while a source is stalled, so that the next success is reported."""
        self.dry = False
        """Whether the last failed take showed that nothing is queued, or that it is no use to go on."""
        self.draining = False
        """Whether the worker serves what is queued before it leaves."""
        self._writer = writer
        self._identity = ""
        self._pause: Callable[[], object] = bool
        self._stalled: set[Source] = set()

    def begin(self, identity: str, pause: Callable[[], object]) -> None:
        """Add what the worker has.

        identity: names the worker in the log. pause: waits a little, and acts on what the master says
        meanwhile.
        """
        self._identity = identity
        self._pause = pause

    def failed(self, source: Source, error: Exception) -> None:
        """Act on a take that has failed. Raises the error when the worker has lost its listener."""
        draining = self.draining or self._writer.words[ORDER] == _DRAIN
        empty = draining and source.listener.is_empty()
        self.dry = False
        match source.meaning_of(error, draining=draining, empty=empty):
            case Meaning.SIBLING:
                self.dry = True
                self.fruitless += FRUITLESS_TRY
            case Meaning.NOTHING:
                self.dry = True
                if self.fruitless:
                    self.succeeded(source)
                return
            case Meaning.CLIENT_GONE:
                self.fruitless += 1
                if self.fruitless >= FRUITLESS_BOUND:
                    self._stall(source, error)
            case Meaning.SHORTAGE:
                self.fruitless += 1
                self._stall(source, error)
            case Meaning.DRAINED:
                self.dry = True
                return
            case Meaning.BROKEN:
                raise error
        self._pause_if_useless(source)

    def _pause_if_useless(self, source: Source) -> None:
        """Pause where the next take will probably bring nothing either."""
        if self.fruitless >= FRUITLESS_BOUND:
            self.dry = True
            self._pause()
        elif source in self._stalled:
            self._pause()

    def wait_for_process(self, source: Source, error: Exception) -> None:
        """Pause before another try to give a request in hand to a thread or a process of its own."""
        self.fruitless += 1
        self._stall(source, error)
        self._pause()

    def succeeded(self, source: Source) -> None:
        """Forget the points after a take that brought a request; needed only while there are any."""
        if source in self._stalled:
            self._stalled.remove(source)
            log.event(
                logging.WARNING, self._identity, "takes requests again", listener=source.listener
            )
        self.fruitless = len(self._stalled)

    def is_stalled(self, source: Source) -> bool:
        """Return whether requests cannot be taken from this source for now."""
        return source in self._stalled

    def _stall(self, source: Source, error: Exception) -> None:
        self._writer.count(SlotField.ACCEPT_FAILURES)
        if source in self._stalled:
            return
        self._stalled.add(source)
        what = "cannot take requests, retrying"
        if isinstance(error, OSError):
            log.event(logging.ERROR, self._identity, what, listener=source.listener, error=error)
        else:
            log.failure(logging.ERROR, self._identity, what, error, listener=source.listener)


_THREADED = ThreadingMixIn.process_request.__code__
_FORKED = ForkingMixIn.process_request.__code__
_START = threading.Thread.start.__code__


def has_no_process(error: Exception) -> bool:
    """Return whether ``process_request()`` failed because the system had no thread or process for it.

    The frames of the error decide, not its type: a handler may raise the same error when it starts a
    thread itself. Here nothing of the request has run yet, so the call can be made again.
    """
    codes = _codes_of(error.__traceback__)
    if isinstance(error, RuntimeError):  # "can't start new thread"
        return codes[-2:] == [_THREADED, _START]
    is_short = isinstance(error, OSError) and error.errno in (errno.EAGAIN, errno.ENOMEM)
    return is_short and codes[-1:] == [_FORKED]


def _codes_of(trace: TracebackType | None) -> list[CodeType]:
    codes = []
    while trace is not None:
        codes.append(trace.tb_frame.f_code)
        trace = trace.tb_next
    return codes
