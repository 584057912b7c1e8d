"""What the error of a failed take means: the table, its two exceptions, and the kernel's own errors."""

from __future__ import annotations

import errno
import functools
import os
import resource
import socket
import socketserver
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from prefork.workers.worker.shortage import MEANINGS, Meaning, meaning
from prefork.workers.worker.takes import has_no_process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SHORT = [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM]
NETWORK = [
    *(errno.ENETDOWN, errno.EPROTO, errno.ENOPROTOOPT, errno.EHOSTDOWN),
    *(errno.ENONET, errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH),
]
"""The errors that accept(2) asks to treat like EAGAIN, because they belong to one connection."""

ALWAYS = [(False, False), (False, True), (True, False), (True, True)]
"""Every pair of draining and empty."""


def of(number: int, *, draining: bool = False, empty: bool = False) -> Meaning:
    """Return what an error with this number means."""
    return meaning(OSError(number, "on purpose"), draining=draining, empty=empty)


# --- by number


@pytest.mark.parametrize(("draining", "empty"), ALWAYS)
@pytest.mark.parametrize("error", [BlockingIOError(), BlockingIOError(errno.EAGAIN, "again")])
def test_nothing_queued_is_a_siblings_doing(error: OSError, draining: bool, empty: bool) -> None:
    """A take that finds nothing means that another worker was faster, with or without an error number."""
    assert meaning(error, draining=draining, empty=empty) is Meaning.SIBLING


@pytest.mark.parametrize(("draining", "empty"), ALWAYS)
@pytest.mark.parametrize("number", [*NETWORK, errno.ECONNABORTED, errno.EPERM, errno.ECONNREFUSED])
def test_error_of_one_client_costs_one_client(number: int, draining: bool, empty: bool) -> None:
    """An error that belongs to one connection never means that the worker should pause or leave."""
    assert of(number, draining=draining, empty=empty) is Meaning.CLIENT_GONE


def test_unknown_error_costs_one_client() -> None:
    """An error number that the table does not know counts as one client that went wrong."""
    nothing_yet = {errno.EALREADY, errno.EINPROGRESS}  # Python makes a BlockingIOError of these
    unknown = errno.errorcode.keys() - MEANINGS.keys() - nothing_yet
    assert {of(number) for number in unknown} == {Meaning.CLIENT_GONE}
    assert {of(number) for number in nothing_yet} == {Meaning.SIBLING}


@pytest.mark.parametrize("error", [TimeoutError(), OSError(), OSError("no number")])
def test_error_without_number_costs_one_client(error: OSError) -> None:
    """An OSError without a number, such as a timeout, counts as one client that went wrong."""
    assert meaning(error, draining=False, empty=False) is Meaning.CLIENT_GONE


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("number", [*SHORT, errno.EINVAL])
def test_shortage_while_serving(number: int, empty: bool) -> None:
    """While the worker serves, a shortage is one whatever the queue holds: the next call meets it again."""
    assert of(number, empty=empty) is Meaning.SHORTAGE


@pytest.mark.parametrize(("empty", "expected"), [(True, "DRAINED"), (False, "SHORTAGE")])
@pytest.mark.parametrize("number", SHORT)
def test_shortage_while_draining(number: int, empty: bool, expected: str) -> None:
    """accept() fails before it looks into the queue: while draining, that matters only if a client waits."""
    assert of(number, draining=True, empty=empty) is Meaning[expected]


@pytest.mark.parametrize("empty", [False, True])
def test_closed_intake_is_drained(empty: bool) -> None:
    """EINVAL while draining is the end of a Unix socket's queue, although poll() calls it readable for ever."""
    assert of(errno.EINVAL, draining=True, empty=empty) is Meaning.DRAINED


@pytest.mark.parametrize(("draining", "empty"), ALWAYS)
@pytest.mark.parametrize("number", [errno.EBADF, errno.ENOTSOCK])
def test_lost_listener_is_broken(number: int, draining: bool, empty: bool) -> None:
    """A worker whose listening socket is gone is broken, whatever it was about to do."""
    assert of(number, draining=draining, empty=empty) is Meaning.BROKEN


@pytest.mark.parametrize(("draining", "empty"), ALWAYS)
def test_exception_of_the_program_is_a_shortage(draining: bool, empty: bool) -> None:
    """What an overridden get_request() raises besides OSError would be raised again at once: pause."""
    assert meaning(ValueError("x"), draining=draining, empty=empty) is Meaning.SHORTAGE


# --- as the kernel raises it


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Give a listening socket that does not block, with an empty queue."""
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.setblocking(False)
        yield made


def error_of(listener: socket.socket) -> Exception:
    """Return what accept() raises."""
    with pytest.raises(OSError) as caught:
        listener.accept()
    return caught.value


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Let this process open nothing more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_kernel_empty_queue(listener: socket.socket) -> None:
    """accept() on an empty queue is a sibling's doing."""
    assert meaning(error_of(listener), draining=False, empty=True) is Meaning.SIBLING


def test_kernel_without_descriptors(listener: socket.socket) -> None:
    """accept() without a free descriptor is a shortage even on an empty queue, and then the drain is over."""
    with no_descriptor_left():
        error = error_of(listener)
    assert meaning(error, draining=False, empty=True) is Meaning.SHORTAGE
    assert meaning(error, draining=True, empty=True) is Meaning.DRAINED


def test_kernel_listener_that_was_shut_down(listener: socket.socket) -> None:
    """accept() on a listener that was shut down fails for ever: a shortage."""
    listener.shutdown(socket.SHUT_RDWR)
    assert meaning(error_of(listener), draining=False, empty=False) is Meaning.SHORTAGE


def test_kernel_lost_listener(listener: socket.socket) -> None:
    """accept() on a closed descriptor, or on one that is another file's now, says that the worker is broken."""
    with open(os.devnull, "rb") as other:
        os.close(listener.fileno())
        closed = error_of(listener)
        os.dup2(other.fileno(), listener.fileno())
    assert meaning(closed, draining=False, empty=False) is Meaning.BROKEN
    assert meaning(error_of(listener), draining=False, empty=False) is Meaning.BROKEN


def failure_of(call: Callable[[], object]) -> Exception:
    """Return the error of a thread that cannot be started."""
    with pytest.raises(RuntimeError) as caught:
        call()
    return caught.value


def test_thread_of_the_server_is_told_from_one_of_the_handler() -> None:
    """Only where the server itself could start no thread has nothing of the request run."""

    class Server(socketserver.ThreadingMixIn):
        daemon_threads = block_on_close = False

    class Inline(Server):
        def process_request(self, *_: object) -> None:
            threading.Thread(target=print).start()

    before = threading.stack_size(1 << 47)
    try:
        ours = failure_of(functools.partial(Server().process_request, None, None))
        theirs = failure_of(functools.partial(Inline().process_request, None, None))
    finally:
        threading.stack_size(before)
    assert has_no_process(ours)
    assert not has_no_process(theirs)
    assert not has_no_process(RuntimeError("can't start new thread"))
    assert not has_no_process(OSError(errno.EAGAIN, "of a handler"))
