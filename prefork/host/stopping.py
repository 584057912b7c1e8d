"""The control signals while no master takes them: while a program loads, binds and cleans up.

The default action of a control signal ends or stops the process. To end it there would leave socket
files and a pid file behind. And a HUP or a TTIN never means that: its sender need not know in which
moment of its life a server is. So ``prefork run`` handles the control signals from its first line
to its last one. While the master serves, its own handlers take their place
(prefork/master/signals.py):

    moment                             TERM, INT, QUIT              the others
    ------                             ---------------              ----------
    prefork imports its command line   wait (block)                 wait
    the program is loaded              leave it (stops_unwind)      are noted
    a server is constructed            wait (stops_deferred)        are noted
    the master serves                  see lifecycle.py             see lifecycle.py
    files are removed                  are noted                    are noted
    the interpreter ends               end the process (end)        are noted
    the last atexit function has run   are ignored                  are ignored

What was noted before the master serves becomes an order to the master. So TERM is obeyed also where
the program has swallowed the exception that was to leave it. A note says which signal came, not how
often.

Handlers stand here, where possible, and no signal is blocked or ignored. A program that the
application starts would inherit a blocked or ignored signal. It does not inherit a handler, and a
child that is forked puts back what was there before ours.

A program that calls ``serve_forever()`` itself decides about its signals until then. One moment is
an exception: after an exec in place (prefork/reloading/exec.py) ``import prefork`` finds the control
signals blocked. It has them noted until the new master serves. A stop, too, is only noted in that
moment, also in ``prefork run``: the new master obeys it, and ends all that the old image has left.
"""

from __future__ import annotations

import atexit
import contextlib
import signal
import threading
from typing import TYPE_CHECKING, Any, Final, NoReturn

from prefork.host.process import process
from prefork.workers import forks, system

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import FrameType

STOPS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
"""The control signals that end a server."""

CONTROL_SIGNALS: Final = frozenset(
    {
        *STOPS,
        *(signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU),
    }
)
"""The signals that are orders to a master. They are blocked across an exec in place."""


class StoppedEarly(BaseException):
    """TERM or QUIT came before the master took signals, or after it."""


class Unattended:
    """The control signals of this process while no master takes them (its main thread).

    There is one object, ``unattended``.
    """

    def __init__(self) -> None:
        self._noted: dict[int, object] = {}
        # A method of dict is C code. A Python function would nest in a storm of signals.
        self._note: Final = self._noted.setdefault
        self._before: dict[int, Any] = {}
        """The dispositions before ours, by signal. Empty while none of ours has been installed."""
        self._to_the_end = False
        forks.add(self._put_back_in_child, every_time=True)

    def stand(self, *, to_the_end: bool) -> None:
        """Handle the control signals from now on. Those that were blocked and came arrive now.

        A signal that is ignored stays ignored, such as HUP under nohup.

        to_the_end: whether the handlers stand until the process ends, as in ``prefork run``. If
        not, they are put back after the next master has served.
        """
        self._to_the_end = to_the_end
        if to_the_end:
            atexit.register(_ignore_at_end)
        else:
            kernels = {int(number): system.disposition_of(number) for number in CONTROL_SIGNALS}
            process.close_after_handover(lambda: self._leave_to_the_program(kernels))
        found: dict[int, Any] = {number: _handle(number, self._note) for number in CONTROL_SIGNALS}
        self._before = {**found, **self._before}
        system.enlarge_signal_stack()  # all of them may arrive together now
        system.unblock(CONTROL_SIGNALS)

    def end(self, status: int) -> None:
        """Have TERM, INT and QUIT end this process with ``status``: ``prefork run`` has done its work.

        What runs from now on, ``atexit`` functions and threads of the application, may hang.
        """

        def end_now(_number: int, _frame: FrameType | None) -> NoReturn:
            system.exit_now(status)

        # Until a handover is over, the caretaker takes these signals, as the last atexit function.
        if process.handover is None:
            self._noted.clear()
            for number in STOPS:
                _handle(number, end_now)

    def _leave_to_the_program(self, kernels: Mapping[int, bytes]) -> None:
        """Have the signals do what they did before ours, when a master in another thread has adopted all.

        A master in the main thread installs its own handlers. In another thread Python installs none,
        and what is only noted would be lost: TERM would not end the program any more. So the kernel
        is told directly, and gets again what was noted.
        """
        if threading.current_thread() is threading.main_thread():
            return
        for number, disposition in kernels.items():
            if self.is_ours(system.handler_of(number)):
                system.put_back(disposition, number)
        for number in self.take():
            system.send_to_self(number)

    def take(self) -> list[int]:
        """Return the signals that were noted since the last call."""
        noted = list(self._noted)
        self._noted.clear()
        return noted

    def note(self, number: int) -> None:
        """Note a signal that has come."""
        self._noted[number] = None

    def after_serving(self, number: int, handler: Any) -> Any:
        """Return what to install when a master that has found ``handler`` does not serve any more."""
        stays = self._to_the_end or process.handover is not None
        return handler if stays else self.before(number, handler)

    def before(self, number: int, handler: Any) -> Any:
        """Return the disposition that was there before ours, and any other handler as it is."""
        return self._before[number] if self.is_ours(handler) else handler

    def is_ours(self, handler: Any) -> bool:
        """Return whether a handler is one of those that prefork installs while no master serves."""
        return handler == self._note or getattr(handler, "__module__", "") == __name__

    def _put_back_in_child(self) -> None:
        """Put back the dispositions of the program (any child)."""
        self._noted.clear()
        # In a worker none of ours stands: its master serves.
        ours = [n for n in self._before if self.is_ours(system.handler_of(n))]
        with contextlib.suppress(ValueError):  # raised in a child that a thread has forked (3.13.0)
            system.set_handlers({n: default_for_none(self._before[n]) for n in ours})


def block() -> None:
    """Have the control signals wait until ``stand()`` or ``release()``: the process begins."""
    system.block(CONTROL_SIGNALS)


def release() -> None:
    """Let the control signals through: this process is no server."""
    system.unblock(CONTROL_SIGNALS)


@contextlib.contextmanager
def stops_unwind() -> Iterator[None]:
    """Have TERM, INT and QUIT leave the body: by KeyboardInterrupt for INT, or by StoppedEarly.

    A signal that is ignored stays ignored. While the state of an earlier image waits for a master,
    the signals are noted: only a master ends all that the earlier image has left.
    """
    if process.handover is not None:
        yield
        return
    with _handled(_unwind):
        _unwind_if_noted()
        try:
            yield
        except (StoppedEarly, KeyboardInterrupt):
            unattended.take()  # what was noted is obeyed
            raise


@contextlib.contextmanager
def stops_deferred() -> Iterator[None]:
    """Delay the first TERM, INT or QUIT until the body is done. A second one takes effect at once.

    An exception in the middle of a server's constructor would leave a socket file behind: the
    socket is bound, and there is no server yet that could remove the file. While the state of an
    earlier image waits for a master, the signals are noted.
    """
    if process.handover is not None:
        yield
        return
    came: list[int] = []

    def defer(number: int, frame: FrameType | None) -> None:
        unattended.note(number)
        if came:
            _unwind(number, frame)
        came.append(number)

    with _handled(defer):
        yield
    _unwind_if_noted()


@contextlib.contextmanager
def undisturbed_cleanup() -> Iterator[contextlib.ExitStack]:
    """Give an ExitStack whose callbacks TERM, INT and QUIT cannot interrupt.

    They remove socket files and the pid file.
    """
    with contextlib.ExitStack() as handled, contextlib.ExitStack() as stack:
        try:
            yield stack
        finally:
            handled.enter_context(_handled(_disregard))


@contextlib.contextmanager
def _handled(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Handle TERM, INT and QUIT in the body, each unless it is ignored."""
    with contextlib.ExitStack() as undo:  # which calls all of its callbacks, also when one raises
        for number in STOPS:
            undo.callback(_handle, number, _handle(number, handler))
        yield


def _handle(number: int, handler: Any) -> Any:
    """Install a handler unless the signal is ignored; return what was there before."""
    before = signal.getsignal(number)
    if before is not signal.SIG_IGN:
        signal.signal(number, default_for_none(handler))
    return before


def _ignore_at_end() -> None:
    if process.handover is None:  # or the caretaker runs next
        for number in CONTROL_SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def default_for_none(handler: Any) -> Any:
    """Return what restores a handler: None stands for one of C code, which Python cannot restore."""
    return signal.SIG_DFL if handler is None else handler


def _unwind(number: int, _frame: FrameType | None) -> NoReturn:
    unattended.note(number)  # in case that the program swallows the exception
    raise KeyboardInterrupt if number == signal.SIGINT else StoppedEarly


def _unwind_if_noted() -> None:
    for number in unattended.take():
        if number in STOPS:
            _unwind(number, None)
        unattended.note(number)


def _disregard(number: int, _frame: FrameType | None) -> None:
    unattended.note(number)


unattended: Final = Unattended()
"""The control signals of this process."""
