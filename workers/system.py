"""The only module that forks, waits for children, signals them and ends a process.

A process is signalled or waited for by its pidfd, or by the pid of a child that this process still
has to collect. The kernel gives such a pid to no other process, so neither can hit a stranger.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # no stubs: what signal.py wraps
import contextlib
import ctypes
import encodings.ascii  # noqa: F401 - loaded now: a process that becomes another user may not be able to read Python's library
import errno
import mmap
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Final, NoReturn, Protocol

import msgspec

from prefork.workers import forks
from prefork.workers.states import ExitStatus, MainThread, Usage

_PR_SET_PDEATHSIG = 1
_PR_GET_CHILD_SUBREAPER = 37
_PF_FORKNOEXEC = 0x40
_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2

_SIGACTION_ROOM = 512
"""More bytes than a ``struct sigaction`` has anywhere. The address of the handler comes first."""

_libc = ctypes.CDLL(None, use_errno=True)

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")

_ALL_SIGNALS = _signal.valid_signals()


FLUSH_TIME = 0.5
"""Seconds for which a leaving worker flushes its standard streams: they may have no reader."""


class Child(msgspec.Struct, frozen=True):
    """A process that this one has forked and not collected yet. pidfd: refers to it."""

    pid: int
    pidfd: int


_pidfds: Final[set[int]] = set()
"""The pidfds of the children that this process holds: every child of it lets go of them.

They stand here, and not with whoever keeps the child, because a pidfd exists from a moment in
``fork_children()`` on. Another thread may fork at that moment, for another pool.
"""


def _let_go_of_pidfds() -> None:
    forks.close(_pidfds)
    _pidfds.clear()


forks.add(_let_go_of_pidfds, every_time=True)


class System(Protocol):
    """What keeping children takes of the operating system.

    This module is the real one, and the default wherever a System is an argument. Tests pass
    tests/support/fake_system.py, whose children are invented; one list of tests holds both.
    """

    def fork_children(
        self, runs: Sequence[Callable[[set[int]], NoReturn]]
    ) -> tuple[list[Child | None], OSError | None]:
        """Fork one child for each of ``runs``."""

    def collect(self, child: Child) -> ExitStatus | None:
        """Return how the child ended; None while it lives."""

    def wait_for_end(self, child: Child) -> None:
        """Wait until the child has ended, without collecting it."""

    def wait_for_all(self, children: Sequence[Child], seconds: float) -> bool:
        """Wait until the children have ended, for this long at most; return whether they have."""

    def adopt(self, child: Child) -> None:
        """Hold a child that an earlier image of this process has forked."""

    def release(self, child: Child) -> None:
        """Close the pidfd of a child that was collected."""

    def send(self, child: Child, number: int) -> None:
        """Signal the child."""

    def has_received_alone(self, child: Child, number: int) -> bool:
        """Return whether the child has one thread, which has received this signal."""

    def main_thread(self, child: Child) -> MainThread | None:
        """Return the state of the child's main thread; None where the kernel does not tell."""

    def cpu_seconds(self, child: Child) -> float | None:
        """Return the CPU time that the child has used; None where the kernel does not tell."""

    def is_init(self) -> bool:
        """Return whether orphans of other processes become children of this one."""

    def zombies_except(self, pids: set[int]) -> Iterator[int]:
        """Yield the children that have ended and are not among ``pids``."""

    def collect_orphan(self, pid: int) -> None:
        """Collect one of these."""


def fork_children(
    runs: Sequence[Callable[[set[int]], NoReturn]],
) -> tuple[list[Child | None], OSError | None]:
    """Fork one child for each of ``runs``. Each child calls its function, which must not return.

    The function is called with all signals blocked. Its argument is the previous signal mask, to be
    set once the child's handlers are installed. Returns a child for each function, or None in its
    place, and the OSError for which one is missing: the kernel refused a process or a descriptor.
    After a refused process the rest is not tried.

    No child runs before this process holds its pidfd: a child without one could not be supervised,
    and would have to be killed, perhaps with a client in hand. So each child waits at a gate, and
    enters when all that can be held are held. One that cannot be held is killed there.

    All children are forked in one go, and what they need is prepared before the first fork. After a
    fork, master and child share every page of memory until one of them writes to it; then the
    kernel copies the page. Whatever the master does between two forks - log a line, open a pidfd,
    fill a table - writes to pages that all earlier children share, and costs each of them copies.

    Signals are blocked from before the first fork. A signal that is sent to a child at once, as by
    Ctrl-C to the whole group, waits until the child has handlers of its own, instead of running a
    handler of the master in it. The master's own signals wait until all children are forked.

    The error of a fork that failed has no traceback. It would keep this frame alive, and with it
    all that the children were to be made of.
    """
    # What is still buffered would be written once more by every child.
    _flush_without_waiting()
    try:
        gate = _Gate()
    except OSError as error:
        return [None] * len(runs), error.with_traceback(None)
    with contextlib.closing(gate):
        pids, failure = _fork_all(runs, gate)
        children: list[Child | None] = [None] * len(runs)
        for number, pid in enumerate(pids):
            try:
                children[number] = hold_child(pid)
            except OSError as error:
                failure = error.with_traceback(None)
        gate.let_in(sum(child is not None for child in children))
    return children, failure


def _fork_all(
    runs: Sequence[Callable[[set[int]], NoReturn]], gate: _Gate
) -> tuple[list[int], OSError | None]:
    """Fork the children, which wait at the gate; return their pids, and the error of the last."""
    pids: list[int] = []
    mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, _ALL_SIGNALS)
    _silence_fork_warning()
    try:
        for run in runs:
            pid = os.fork()
            if pid == 0:
                _run_to_the_end(run, mask, gate)
            pids.append(pid)
    except OSError as error:
        return pids, error.with_traceback(None)
    finally:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)
    return pids, None


class _Gate:
    """Where children that were just forked wait until this process holds them: a pipe.

    Each child that may run gets one byte. The end of the pipe means that this process has ended
    before that; then the child ends, too. No child has the write end, whoever has forked it, so the
    end is not hidden. A child that has no byte to expect is killed before the first byte is
    written, so no other child goes without.

    A pidfd from the fork itself (CLONE_PIDFD) would need no gate. But ``os.fork()`` does not offer
    it. A ``clone()`` by way of ctypes would pass over what Python and the C library do around a
    fork: renew their locks, forget the other threads, call the functions that were registered for
    it. Such a child cannot run Python.

    To open each pidfd just after its fork, and let that child in at once, would gain nothing: the
    start of 40 workers took as long when it was measured.
    """

    def __init__(self) -> None:
        with forks.lock:
            self._read, self._write = os.pipe2(os.O_CLOEXEC)
            self._on_list = forks.add(self._close_write_end, in_others=self._close_read_end)

    def _close_write_end(self) -> None:
        os.close(self._write)

    def _close_read_end(self, _servers: Collection[object]) -> None:
        os.close(self._read)

    def let_in(self, count: int) -> None:
        """Let this many children run (parent). The pipe has room for the bytes of all."""
        os.write(self._write, bytes(count))

    def enter(self) -> bool:
        """Wait to be let in; return whether that was before the parent's end (child)."""
        may_run = os.read(self._read, 1) != b""
        os.close(self._read)
        forks.remove(self._on_list)
        return may_run

    def close(self) -> None:
        """Close the gate (parent). A child that still waits there ends."""
        with forks.lock:
            forks.remove(self._on_list)
            os.close(self._read)
            os.close(self._write)


def _silence_fork_warning() -> None:
    """Have Python not warn of this process's threads when this module forks.

    The master logs a plainer warning of its own, once. The filter names this module alone, and it
    stays. ``warnings.catch_warnings()`` would exchange the filters of the whole process for a
    moment, and two pools that fork at once in two threads would put each other's filters back.
    """
    if sys.version_info >= (3, 12):
        warnings.filterwarnings(
            "ignore",
            message="This process .* is multi-threaded",
            category=DeprecationWarning,
            module=__name__.replace(".", r"\.") + "$",
        )


def _run_to_the_end(run: Callable[[set[int]], NoReturn], mask: set[int], gate: _Gate) -> NoReturn:
    # Whatever happens, a child must not return into the program's stack below this frame.
    try:
        if gate.enter():
            run(mask)
    finally:
        os._exit(1)


def hold_child(pid: int) -> Child:
    """Return a child that this process has just made, with its pidfd.

    Raises OSError where there is no descriptor left. The child is killed and collected then,
    because it could not be supervised. Its pid is safe to signal until it is collected.
    """
    try:
        with forks.lock:
            child = Child(pid, os.pidfd_open(pid))
            _pidfds.add(child.pidfd)
    except OSError:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        raise
    return child


def adopt(child: Child) -> None:
    """Hold a child that an earlier image of this process has forked: its pidfd came over the exec."""
    with forks.lock:
        _pidfds.add(child.pidfd)


def release(child: Child) -> None:
    """Close the pidfd of a child that was collected."""
    with forks.lock:
        _pidfds.discard(child.pidfd)
        os.close(child.pidfd)


def collect(child: Child) -> ExitStatus | None:
    """Return how the child ended, or None while it lives (its parent). The pidfd stays open.

    A child whose status another part of the program has collected gives an ExitStatus of which
    neither code nor signal is known.
    """
    try:
        # By pidfd first. Had another part of the program collected the child, its pid could be that
        # of another child by now.
        if os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return None
        # Then by pid, which is the child's own until it is collected: waitid() does not return the
        # usage.
        _, status, used = os.wait4(child.pid, 0)
    except ChildProcessError:
        # The status was taken: by a wait() for any child, or by the kernel, where SIGCHLD is
        # ignored.
        return ExitStatus()
    usage = Usage(
        user_ns=int(used.ru_utime * 1e9),
        system_ns=int(used.ru_stime * 1e9),
        voluntary_switches=used.ru_nvcsw,
        involuntary_switches=used.ru_nivcsw,
        peak_bytes=used.ru_maxrss * 1024,
    )
    if os.WIFSIGNALED(status):
        return ExitStatus(signal=os.WTERMSIG(status), usage=usage)
    return ExitStatus(code=os.WEXITSTATUS(status), usage=usage)


def wait_for_end(child: Child) -> None:
    """Wait until the child has ended, without collecting it. For a child that was killed."""
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOWAIT)


def send(child: Child, number: int) -> None:
    """Signal the child. A child that has ended already is no error."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(child.pidfd, number)


def kill_group(child: Child) -> None:
    """Kill every process of the group that a child leads, the child included.

    The number of the group is the child's pid, which is safe to signal until the child is
    collected. Where something else in this process has collected it, the number may be another
    group's by now, so nothing is killed.
    """
    with contextlib.suppress(ChildProcessError, ProcessLookupError, PermissionError):
        os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        os.killpg(child.pid, signal.SIGKILL)


def has_received_alone(child: Child, number: int) -> bool:
    """Return whether the child has a single thread, and this thread has received the signal.

    A signal is received when it is no longer pending. A child that is stopped has not received it,
    nor has one that gets no processor.
    """
    try:
        with open(f"/proc/{child.pid}/status", encoding="ascii", errors="replace") as status:
            facts = {name: value for name, _, value in (line.partition(":\t") for line in status)}
    except OSError:  # the child has ended, or this process has no descriptor left
        return False
    pending = int(facts["SigPnd"], 16) | int(facts["ShdPnd"], 16)
    return int(facts["Threads"]) == 1 and not pending >> (number - 1) & 1


def main_thread(child: Child) -> MainThread | None:
    """Return the state of the child's main thread and the CPU time that the thread has used.

    Returns None when the child has ended, and when ``/proc`` cannot be read: it may not be mounted, or this
    process has no descriptor left.
    """
    try:
        with open(f"/proc/{child.pid}/task/{child.pid}/stat", "rb") as stat:
            # The name of the program stands in parentheses and may itself contain spaces and parentheses.
            fields = stat.read().rpartition(b") ")[2].split()
        ticks = int(fields[11]) + int(fields[12])
    except (OSError, IndexError, ValueError):
        return None
    return MainThread(fields[0].decode("ascii", "replace"), ticks / _TICKS_A_SECOND)


def cpu_seconds(child: Child) -> float | None:
    """Return the CPU time that all threads of the child have used; None when the child has ended.

    The kernel keeps a clock for each process. Its number is made of the pid (clock_getcpuclockid(3)), which
    is this child's until the child is collected. A reading costs 0.3 µs and needs no descriptor.
    """
    with contextlib.suppress(OSError):
        return time.clock_gettime(~child.pid << 3 | 2)
    return None


def hold_process(pid: int) -> int:
    """Return a pidfd of a process that is no child of this one, such as a running master.

    A caller that holds the pidfd, reads ``/proc/PID`` and then finds the process still running has
    read about that same process. Raises OSError when there is no such process, or no descriptor for
    it.
    """
    return os.pidfd_open(pid)


def signal_held(pidfd: int, number: signal.Signals) -> None:
    """Signal a process by its pidfd.

    Raises ProcessLookupError when it has ended, PermissionError when this user may not signal it.
    """
    signal.pidfd_send_signal(pidfd, number)


def probe_signal(pidfd: int) -> None:
    """Try to signal a process, and send nothing; OSError where that is refused."""
    signal.pidfd_send_signal(pidfd, 0)


def probe_wait(pidfd: int) -> None:
    """Try to wait for a process that is no child of this one; OSError where the wait is refused."""
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)


def set_handlers(handlers: dict[int, Callable[[int, Any], object] | int]) -> None:
    """Install signal handlers (main thread; a worker, or another child)."""
    # Through the C function: the wrapper in ``signal`` looks up an enum member for every number,
    # which costs each worker some 250 KiB of copied pages.
    for number, handler in handlers.items():
        _signal.signal(number, handler if callable(handler) else int(handler))


def disposition_of(number: int) -> bytes:
    """Return what the kernel does at a signal: a ``struct sigaction`` for ``put_back()``."""
    found = ctypes.create_string_buffer(_SIGACTION_ROOM)
    _libc.sigaction(number, None, found)
    return found.raw


def is_of_c(disposition: bytes, number: int) -> bool:
    """Return whether a disposition is a handler that C code has installed, such as ``faulthandler``.

    Call this while a handler of Python stands: all of them are one function in C, and this one is another.
    """
    of_python = _handler_in(disposition_of(number))
    return _handler_in(disposition) not in (int(signal.SIG_DFL), int(signal.SIG_IGN), of_python)


def put_back(disposition: bytes, number: int) -> None:
    """Have the kernel do at a signal what it did when ``disposition_of()`` was called (any thread)."""
    _libc.sigaction(number, disposition, None)


def _handler_in(disposition: bytes) -> int:
    handler: int = struct.unpack_from("@P", disposition)[0]
    return handler


def set_mask(mask: set[int]) -> None:
    """Set the signal mask of this thread, through the C function as above."""
    _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)


def block(numbers: Collection[int]) -> set[int]:
    """Block signals in this thread, and return the previous mask."""
    previous: set[int] = _signal.pthread_sigmask(_signal.SIG_BLOCK, numbers)
    return previous


def mask() -> set[int]:
    """Return the signal mask of this thread."""
    blocked: set[int] = _signal.pthread_sigmask(_signal.SIG_BLOCK, ())
    return blocked


_TIMERS = (_signal.ITIMER_REAL, _signal.ITIMER_VIRTUAL, _signal.ITIMER_PROF)


def idle_timers() -> list[int]:
    """Return the interval timers of this process that do not run; ``alarm()`` is one of them."""
    return [timer for timer in _TIMERS if not _signal.getitimer(timer)[0]]


def stop_timers(timers: Sequence[int]) -> None:
    """Stop interval timers."""
    for timer in timers:
        _signal.setitimer(timer, 0)


class _SignalStack(ctypes.Structure):
    _fields_ = (("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


# Memory that each process has for itself after a fork. Pages that are never touched cost nothing.
_stack_memory = mmap.mmap(-1, 1 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
_stack = _SignalStack(
    ctypes.addressof(ctypes.c_char.from_buffer(_stack_memory)), 0, len(_stack_memory)
)


def enlarge_signal_stack() -> None:
    """Give this thread's signal handlers a stack on which many of them can nest.

    ``faulthandler`` installs one of some 20 KiB, and Python's own handlers run on it as well. Five
    different signals that arrived together overflowed it and killed the worker (SIGSEGV).
    """
    _libc.sigaltstack(ctypes.byref(_stack), None)


def is_init() -> bool:
    """Return whether orphans of other processes become children of this one."""
    if os.getpid() == 1:
        return True
    flag = ctypes.c_int(0)
    return _libc.prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(flag), 0, 0, 0) == 0 and bool(
        flag.value
    )


def is_fork() -> bool:
    """Return whether this process is a fork that runs on without an exec of its own.

    The kernel marks a process so at the fork, and removes the mark at an exec. Where it does not
    show its marks (without ``/proc``, in some sandboxes), the answer is False.
    """
    try:
        with open("/proc/self/stat", "rb") as status:
            # The name of the process is in parentheses, and may have any bytes in it.
            flags = int(status.read().rpartition(b")")[2].split()[6])
    except (OSError, ValueError, IndexError):
        return False
    return bool(flags & _PF_FORKNOEXEC)


def punch_hole(fd: int, length: int) -> bool:
    """Empty the first bytes of a memfd and release their pages. Returns whether the kernel did."""
    mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
    return bool(_libc.fallocate(fd, mode, ctypes.c_long(0), ctypes.c_long(length)) == 0)


def zombies_except(pids: set[int]) -> Iterator[int]:
    """Yield the children of this process that have ended and are not among ``pids``."""
    return (pid for pid in children() if pid not in pids and has_ended(pid))


def children() -> Iterator[int]:
    """Yield the pids of the children of this process, also of those that have ended."""
    try:
        threads = os.listdir("/proc/self/task")
    except OSError:
        return  # no descriptor left to look with; the next tick looks again
    for thread in threads:
        try:
            with open(f"/proc/self/task/{thread}/children", encoding="ascii") as listing:
                pids = [int(word) for word in listing.read().split()]
        except OSError:
            continue  # that thread has just ended
        yield from pids


def has_ended(pid: int) -> bool:
    """Return whether a child of this process has ended and waits to be collected."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False


def collect_orphan(pid: int) -> None:
    """Collect a child that has ended and that no other part of the program collects."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def exit_now(status: int) -> NoReturn:
    """End this process. The standard streams are flushed, no code of the program runs.

    The flush runs in a thread of its own and is waited for FLUSH_TIME at most. A thread of the
    master may have held a stream's lock at the fork, and a pipe may have no reader. Neither may
    keep a worker alive.
    """
    flusher = threading.Thread(target=_flush_streams, daemon=True)
    try:
        flusher.start()
        flusher.join(FLUSH_TIME)
    except RuntimeError:  # the interpreter is ending already, and starts no thread any more
        _flush_without_waiting()
    finally:
        os._exit(status)


def end_after(seconds: float) -> None:
    """Have the kernel end this process (SIGALRM) when this much time has passed (worker, main thread).

    The timer takes the place of one that the program has set, and the program's handler is not called.
    seconds: more than 0.
    """
    # Ignored first, which discards a signal that is pending.
    _signal.signal(signal.SIGALRM, int(signal.SIG_IGN))
    _signal.setitimer(_signal.ITIMER_REAL, seconds)
    _signal.signal(signal.SIGALRM, int(signal.SIG_DFL))
    _signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGALRM,))


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends. parent: the pid that the parent has had.

    What the kernel watches is the thread of the parent that has started this process. Where another
    program stands between the two, the end of that one counts.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent and not os.path.exists(f"/proc/{parent}"):  # it has ended before
        os._exit(1)


def exit_after(seconds: float, status: int) -> None:
    """End this process with this status when this much time has passed, by a thread that waits."""

    def exit_late() -> None:
        time.sleep(seconds)
        os._exit(status)

    with contextlib.suppress(RuntimeError):  # no thread to be had
        threading.Thread(target=exit_late, daemon=True).start()


def _flush_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


def _flush_without_waiting() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            if takes_more(stream.fileno()):
                stream.flush()


def takes_more(fd: int) -> bool:
    """Return whether a write would not wait: a full pipe without a reader must not stop the master."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(0))


def become(
    command: Sequence[str],
    environment: dict[str, str],
    folder: str,
    *,
    keep: Sequence[int],
    blocked: Collection[int],
    limit: float,
) -> NoReturn:
    """Run another program in this process. It gets the descriptors ``keep`` and no others.

    The signals ``blocked`` are blocked when the program begins. limit: seconds after which SIGALRM
    ends the program, unless it calls ``lift_limit()``. Raises OSError or ValueError when the
    program cannot be run. Descriptors, folder, timers and signal mask are as before then.
    """
    before, timers = _folder(), _set_timers(limit)
    alarm = signal.getsignal(signal.SIGALRM)
    mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, blocked)
    try:
        if alarm is signal.SIG_IGN:  # which an exec keeps
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, (signal.SIGALRM,))
        os.chdir(folder)
        for fd in keep:
            os.set_inheritable(fd, True)
        os.execve(command[0], list(command), environment)  # noqa: S606 - no shell: our own program again
    except BaseException:
        for fd in keep:
            with contextlib.suppress(OSError):
                os.set_inheritable(fd, False)
        for which, (first, interval) in timers.items():
            signal.setitimer(which, first, interval)
        if alarm is signal.SIG_IGN:
            signal.signal(signal.SIGALRM, alarm)
        if before is not None:
            os.chdir(before)
        _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)
        raise
    raise AssertionError("exec has returned")


def _set_timers(limit: float) -> dict[int, tuple[float, float]]:
    """Have SIGALRM come after ``limit`` seconds, and no other timer's signal; return what was set.

    An exec keeps the timers of a process and resets their handlers. A timer of the old program
    would end the new one, at some moment, by the default action of its signal.
    """
    timers = {
        signal.ITIMER_REAL: (limit, LIMIT_INTERVAL),
        signal.ITIMER_VIRTUAL: (0.0, 0.0),
        signal.ITIMER_PROF: (0.0, 0.0),
    }
    return {which: signal.setitimer(which, *times) for which, times in timers.items()}


LIMIT_INTERVAL = 61.0
"""The interval of the timer of ``become()``, by which it is told from one of the program's own."""


def set_limit(seconds: float) -> None:
    """Set anew in how many seconds SIGALRM ends this program, if there is a limit (next image)."""
    if signal.getitimer(signal.ITIMER_REAL)[1] == LIMIT_INTERVAL:
        signal.setitimer(signal.ITIMER_REAL, seconds, LIMIT_INTERVAL if seconds else 0.0)


def lift_limit() -> None:
    """Have SIGALRM not end this program, and leave a timer of the program's own (next image)."""
    set_limit(0.0)


class _SignalEvent(ctypes.Structure):
    _fields_ = (
        ("value", ctypes.c_void_p),
        ("number", ctypes.c_int),
        ("notify", ctypes.c_int),  # 0 is SIGEV_SIGNAL
        ("rest", ctypes.c_char * 48),
    )


class _TimerTimes(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_long) for name in ("every_s", "every_ns", "s", "ns"))


class Timer:
    """A timer that sends a signal to this process, besides those of ``signal.setitimer()``.

    An exec and a fork do away with it. Where the C library has none, no signal comes.
    """

    def __init__(self, number: int) -> None:
        self._id = ctypes.c_void_p()
        event = _SignalEvent(number=number)
        create = getattr(_libc, "timer_create", None)
        self._exists = (
            create is not None
            and create(time.CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(self._id)) == 0
        )

    def set(self, seconds: float) -> None:
        """Have the signal sent once, after this time. 0 for never."""
        if self._exists:
            whole, part = divmod(seconds, 1)
            times = _TimerTimes(0, 0, int(whole), int(part * 1e9))
            _libc.timer_settime(self._id, 0, ctypes.byref(times), None)


class TimerDescriptor:
    """A descriptor that becomes readable when a time is over, and stays so until it is set again.

    Raises OSError if there is no descriptor left.
    """

    def __init__(self) -> None:
        self.fd: int = _libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise OSError(number := ctypes.get_errno(), os.strerror(number))

    def expire_after(self, seconds: float) -> None:
        """Become readable after this time, and not before. 0 for at once."""
        whole, part = divmod(seconds, 1)
        # A time of 0 would mean never.
        times = _TimerTimes(0, 0, int(whole), max(1, int(part * 1e9)))
        _libc.timerfd_settime(self.fd, 0, ctypes.byref(times), None)

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.fd)


class _Heap(ctypes.Structure):
    # struct mallinfo2 of the GNU C library, since 2.33.
    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


_malloc_trim = getattr(_libc, "malloc_trim", None)
_mallinfo2 = getattr(_libc, "mallinfo2", None)
if _mallinfo2 is not None:
    _mallinfo2.restype = _Heap


def can_trim_heap() -> bool:
    """Return whether the C library can return free memory to the system on demand."""
    return _malloc_trim is not None


def trim_heap() -> None:
    """Return the free memory of the heap to the system; nothing happens where the C library cannot."""
    if _malloc_trim is not None:
        _malloc_trim(ctypes.c_size_t(0))


def heap_kept() -> int:
    """Return the bytes that malloc() has of the system and that are free; 0 if the C library does not say.

    Pages of them that ``trim_heap()`` has returned count, too, until they are used again.
    """
    return 0 if _mallinfo2 is None else int(_mallinfo2().fordblks)


def receive_urgent(fd: int) -> bytes | None:
    """Return the urgent byte of a stream, without waiting; None if it is announced and has not arrived, b"" if there is none.

    ``socket.recv()`` would wait for ordinary data first, where the socket object has a timeout.
    """
    buffer = ctypes.create_string_buffer(1)
    if _libc.recv(fd, buffer, 1, socket.MSG_OOB | socket.MSG_DONTWAIT) == 1:
        return buffer.raw
    return None if ctypes.get_errno() == errno.EAGAIN else b""


def _folder() -> str | None:
    # Not by a descriptor of the folder: there may be none left.
    with contextlib.suppress(OSError):  # the folder was removed
        return os.getcwd()
    return None


def wait_for_any(children: Sequence[Child], seconds: float) -> None:
    """Wait until one of these children has ended, for this long at most. Needs no descriptor."""
    poll = select.poll()
    for child in children:
        poll.register(child.pidfd, select.POLLIN)
    poll.poll(seconds * 1000)


def wait_for_all(children: Sequence[Child], seconds: float) -> bool:
    """Wait until these children have ended, for this long at most, without collecting them.

    Returns whether all have ended. With 0 seconds it only looks.
    """
    # One after the other: poll() refuses more descriptors than RLIMIT_NOFILE allows at that moment.
    end = time.monotonic() + seconds
    for child in children:
        poll = select.poll()
        poll.register(child.pidfd, select.POLLIN)
        if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
            return False
    return True


def handler_of(number: int) -> Any:
    """Return the handler of a signal, as ``signal.signal()`` has got it; for C see ``set_handlers()``."""
    return _signal.getsignal(number)


def send_to_self(number: int) -> None:
    """Signal this process."""
    os.kill(os.getpid(), number)


def unblock(numbers: Collection[int]) -> None:
    """Let signals through again that this image or an earlier one has blocked (this thread)."""
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, numbers)
