"""The birth and the end of a worker as a Python process (worker).

A worker is a fork of the master, and the fork copies what Python keeps for the master's own end: the
``atexit`` functions, the finalizers and children of ``multiprocessing``, the threads of executors, the
records in buffers of ``logging``. None of it is the worker's. And a worker ends by ``os._exit()``, since
it must not return into the frames of the master, so nothing of what Python does at the end of a process
happens by itself. ``begin()`` and ``end()`` make a worker what a ``multiprocessing.Process`` is, by the
same steps (``BaseProcess._bootstrap()`` and ``popen_fork.Popen._launch()`` of CPython):

The birth
    What the master has registered is forgotten, so that it runs in the master alone. A copy of it in
    the worker would stop the master's executors, end the master's children, remove the master's
    temporary directories. Then ``multiprocessing`` learns that this is a child: it has a process
    object of its own, no children, a parent, and the functions that renew queues, locks and proxies
    after a fork have run. A queue whose feeder thread stayed in the master gets a new one, and a
    proxy of a manager gets a connection of its own.

The end
    What the worker has registered or started ends as at the end of any Python process. Threads come
    first: those of executors are asked to finish, and all that are not daemons are joined. Then come
    the ``atexit`` functions, the last one registered first. ``multiprocessing`` is among them: it
    terminates daemonic children, joins the others and writes what its queues still hold. The handlers
    of ``logging`` are flushed next, and the files that the worker has opened last.

Any of this can take for ever: a thread that never returns, a queue that nothing reads. The master bounds
it for each worker that leaves (workers/pool/deadlines.py): at the deadline it logs the worker's stacks,
which name the call that hangs, and kills the worker. ``bound()`` is for a worker without a
master. A timer of the kernel ends the process then, so the bound needs no thread, no lock and no
bytecode of the process that hangs. Before that, faulthandler writes the stacks to standard error.

``multiprocessing``, ``concurrent.futures`` and ``logging.handlers`` are never imported here. Where the
program has not imported them there is nothing to do, and a worker pays for a look-up each. Some names are
private ones of CPython; a later version without such a name loses that step and no other.
"""

# ruff: noqa: SLF001 - CPython has no public names for most of this

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import gc
import io
import itertools
import logging
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from prefork.workers import log, system

DUMP_BEFORE_END = 1.0
"""Seconds between the stack dump of an orphan that hangs at its end and its end by the kernel."""

LATER_THAN_MASTER = 5.0
"""Seconds by which the kernel's timer is later than the deadline that the master keeps for a worker."""

_TERM, _DEFAULT = int(signal.SIGTERM), int(signal.SIG_DFL)

_began: list[bool] = []
"""Not empty in a worker that has forgotten what the master has registered."""


# --- the birth


def begin(number: int, master_pid: int, life: int) -> None:
    """Forget what is the master's, and become a child of it (once, before code of the program runs).

    number: tells apart the workers of a pool that live at one time. life: a descriptor that is readable
    when the master has ended.
    """
    atexit._clear()
    _began.append(True)
    atexit.register(_end_logging, _handlers())
    _hold_term_during_forks()
    for step in (
        _forget_finalizers,
        _forget_executors,
        _forget_fork_server,
        _forget_files,
        _forget_buffered_records,
        _renew_thread_id,
        _reseed_numpy,
    ):
        with contextlib.suppress(AttributeError):
            step()
    process = sys.modules.get("multiprocessing.process")
    if process is not None:
        with contextlib.suppress(AttributeError):
            _become_child(process, number, master_pid, life)


def _forget_finalizers() -> None:
    # ``weakref.finalize`` registers one function with ``atexit`` for all finalizers, the first time that
    # one is made. It has to do so once more here. The master's finalizers keep their meaning for an
    # object that is deleted, but the end of the worker calls none of them.
    finalize: Any = weakref.finalize
    for one in [*finalize._registry]:
        one.atexit = False
    finalize._registered_with_atexit = False


def _forget_executors() -> None:
    # At the end, concurrent.futures wakes and joins each thread that it knows of. The threads are not
    # here, and the pipe by which those of a process pool are woken is the master's.
    for module, name in (
        ("concurrent.futures.thread", "_threads_queues"),
        ("concurrent.futures.process", "_threads_wakeups"),
    ):
        if module in sys.modules:
            getattr(sys.modules[module], name).clear()


def _forget_fork_server() -> None:
    # The fork server of multiprocessing is a child of the master. A worker would ask for its status before
    # it starts a process, and get an error. The worker starts one of its own when it needs one. The server
    # ends when no process has the pipe any more that is closed here.
    module: Any = sys.modules.get("multiprocessing.forkserver")
    if module is None:
        return
    server = module._forkserver
    alive, preload = server._forkserver_alive_fd, server._preload_modules
    if alive is not None:
        os.close(alive)
    server.__init__()
    server._preload_modules = preload


def _forget_files() -> None:
    # What is frozen, the garbage collector does not list: at the end, it lists what the worker has made.
    # Most of the heap is frozen already (before_fork.py). To look for files here would copy pages.
    gc.freeze()


def _forget_buffered_records() -> None:
    # The master writes them itself.
    handlers = sys.modules.get("logging.handlers")
    if handlers is not None:
        for ref in _handlers():
            handler = ref()
            if isinstance(handler, handlers.BufferingHandler):
                handler.buffer = []


def _renew_thread_id() -> None:
    threading.main_thread()._set_native_id()  # type: ignore[attr-defined]


def _reseed_numpy() -> None:
    # Python reseeds ``random`` in a child. numpy has a generator of its own behind ``numpy.random.rand()``
    # and the like, and would draw the same numbers in every worker. A generator that the program has
    # made cannot be found here.
    numbers: Any = sys.modules.get("numpy.random")
    if numbers is not None:
        numbers.seed()


def _become_child(process: Any, number: int, master_pid: int, life: int) -> None:
    """Do for ``multiprocessing`` what its own children do first.

    process: the module ``multiprocessing.process``. It is there from the first import of the package;
    ``multiprocessing.util`` comes with the first queue, lock or process.
    """
    util: Any = sys.modules.get("multiprocessing.util")
    of_master = process._current_process
    # With a copy of the master's configuration, in which the authentication key stands.
    child = process.BaseProcess(name=f"worker-{number}")
    child._identity = (*of_master._identity, number + 1)
    child._parent_pid = master_pid
    process._process_counter = itertools.count(1)
    process._children = set()
    process._current_process = child
    process._parent_process = process._ParentProcess(of_master.name, master_pid, life)
    if util is not None:
        util._finalizer_registry.clear()
        atexit.register(util._exit_function)
        # After the rest: a proxy connects to its manager here, with the key of the current process.
        util._run_after_forkers()


# --- its children


def enter_fork() -> None:
    """Let ``Process.terminate()`` end this child, if ``multiprocessing`` has forked it (child of a worker).

    A worker handles TERM by taking note of it, and its children inherit that. For a process that a
    handler forks this is right: it finishes the request in hand. For a child of ``multiprocessing`` TERM
    is the way to end it, which the end of the worker depends on: it terminates daemonic children, and
    waits for them.
    """
    if _is_fork_of_multiprocessing():
        with contextlib.suppress(ValueError):  # raised in other threads than the main one
            system.set_handlers({_TERM: _DEFAULT})


def _hold_term_during_forks() -> None:
    # A TERM that comes after the fork and before enter_fork() would be noted, and have no effect. While
    # it is blocked, it waits.
    held: dict[int, set[int]] = {}  # by the thread that forks

    def hold() -> None:
        if _is_fork_of_multiprocessing():
            held[threading.get_ident()] = system.block({_TERM})

    def release() -> None:
        mask = held.pop(threading.get_ident(), None)
        if mask is not None:
            system.set_mask(mask)

    # Functions of a fork run in the order in which they were registered: release() after enter_fork().
    os.register_at_fork(before=hold, after_in_parent=release, after_in_child=release)


def _is_fork_of_multiprocessing() -> bool:
    module: Any = sys.modules.get("multiprocessing.popen_fork")
    if module is None:
        return False
    frame: Any = sys._getframe()
    launch = module.Popen._launch.__code__
    while frame is not None and frame.f_code is not launch:
        frame = frame.f_back
    return frame is not None


# --- the end


def bound(seconds: float, *, has_master: bool) -> None:
    """Have this process ended after this long, whatever it does then. Called before it begins to leave.

    A worker that has a master is dumped and killed by the master at its deadline, which is earlier than
    the bound here. A worker without one writes its stacks to standard error first.
    """
    late = LATER_THAN_MASTER if has_master else DUMP_BEFORE_END
    # CPython 3.13.0 in a child that a thread has forked; a sandbox that forbids timers.
    with contextlib.suppress(ValueError, OSError):
        system.end_after(seconds + late)
    if has_master:
        return
    # By a thread of C, which may wait for a reader of standard error without delaying the end.
    with contextlib.suppress(Exception):  # no standard error, no thread
        faulthandler.dump_traceback_later(max(seconds, 0.001), file=sys.__stderr__ or sys.stderr)


def end(identity: str) -> None:
    """End all that this process has registered or started; afterwards it can leave by ``os._exit()``.

    identity: names the worker in the log. Code of the program runs here, and may wait for as long as
    ``bound()`` allows. Nothing is done before ``begin()``: what is registered is the master's then.
    """
    if not _began:
        return
    # What the handlers hold back may go into a queue, which is flushed below.
    _try(identity, _flush_logging)
    _try(identity, threading._shutdown)  # type: ignore[attr-defined]
    _try(identity, atexit._run_exitfuncs)
    _try(identity, _flush_files)


def _try(identity: str, step: Callable[[], object]) -> None:
    try:
        step()
    except BaseException as error:  # noqa: BLE001 - the process ends either way
        log.failure(logging.ERROR, identity, "could not end in order", error)


# --- files

_BUFFERED: Final = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)


def _flush_files() -> None:
    # Python writes what the buffers of open files still hold when it takes down the objects of a process.
    # A file that the master has opened is left alone: its buffer is a copy, in which may stand what the
    # master will write itself.
    for one in gc.get_objects():
        if type(one) in _BUFFERED:
            with contextlib.suppress(Exception):  # closed, a full disk, a pipe without a reader
                one.flush()


# --- logging

_Ref = Callable[[], logging.Handler | None]


def _handlers() -> list[_Ref]:
    """Return references to all handlers that there are, the oldest first."""
    return [*getattr(logging, "_handlerList", ())]


def _flush_logging() -> None:
    for handler in _living(_handlers()):
        _flush(handler)


def _end_logging(of_master: list[_Ref]) -> None:
    """Do as ``logging.shutdown()``: flush all handlers, and close those that this worker has made.

    The master's handlers stay open: to close one may mean more than to release this process's copy.
    """
    kept = set(map(id, _living(of_master)))
    for handler in _living(reversed(_handlers())):
        _flush(handler)
        if id(handler) not in kept:
            with contextlib.suppress(Exception):
                handler.close()


def _living(refs: Iterable[_Ref]) -> Iterator[logging.Handler]:
    return (handler for ref in refs if (handler := ref()) is not None)


def _flush(handler: logging.Handler) -> None:
    # A plain handler of a stream has flushed each record. The stream's own lock may have been held by
    # another thread of the master at the fork; then it is held here for ever.
    if type(handler).flush is logging.StreamHandler.flush:
        return
    if getattr(handler, "flushOnClose", True):
        with contextlib.suppress(Exception):  # a target that fails
            handler.flush()
