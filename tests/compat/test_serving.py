"""serve_forever(), shutdown(), service_actions(), server_close(): the loop and how it ends."""

from __future__ import annotations

import itertools
import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.support.clients import ask, can_bind, connect, read_all, send_line, server_of
from tests.support.processes import zombies_of
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.server import Program

BOTH_WAYS = pytest.mark.parametrize("arguments", [["plain"], ["prefork"]], ids=["plain", "prefork"])

HEAD = """
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from tests.compat.inside import Pool, serve_here, serving, wait_inside
from tests.support.app import LOOPBACK, Echo, announce, tell
from tests.support.clients import ask, can_bind, connect, read_all, send_line
from tests.support.processes import children_of, live_children_of
from tests.support.waiting import Stopwatch, wait_until

Pool.workers = 2
"""


def finished(
    start: Callable[..., Program], source: str, arguments: tuple[str, ...] = ()
) -> Program:
    """Run a program that ends by itself, and return it when it has, with nobody left."""
    program = start(HEAD + source, arguments=arguments)
    assert program.wait() == 0, program.log
    program.wait_silent()
    assert program.leftovers() == []
    return program


def test_shutdown_returns_when_no_worker_is_left(start: Callable[..., Program]) -> None:
    """shutdown() from another thread stops at once, not at the next poll, and returns when all is stopped (M13, M09, P05)."""
    program = finished(
        start,
        """
def stop():
    ask(server.server_address)
    tell("before", len(live_children_of(os.getpid())))
    watch = Stopwatch()
    server.shutdown()
    tell("seconds", watch.seconds)
    tell("after", [str(child) for child in children_of(os.getpid())])

server = Pool(LOOPBACK, Echo)
thread = threading.Thread(target=stop)
thread.start()
server.serve_forever(poll_interval=60)
thread.join()
tell("active", len(server.active_children or ()))
server.server_close()
""",
    )

    assert program.told("before") > 0
    assert program.told("after") == []
    assert program.told("active") == 0
    assert program.told("seconds") < 1.5


@BOTH_WAYS
def test_shutdown_before_serve_forever(start: Callable[..., Program], arguments: list[str]) -> None:
    """shutdown() before serve_forever() makes that return at once; the next serve_forever() serves (P07)."""
    program = finished(
        start,
        """
with Pool(LOOPBACK, Echo) as server:
    thread = threading.Thread(target=server.shutdown)
    thread.start()
    wait_inside(thread, "shutdown")
    with connect(server.server_address) as client:
        send_line(client, "hello")
        server.serve_forever()
        thread.join()
        server.socket.settimeout(0)
        server.socket.accept()[0].close()  # still queued: nobody has served it
        server.socket.settimeout(None)
""",
        tuple(arguments),
    )

    assert program.all_told("address") == []


@BOTH_WAYS
def test_nothing_is_accepted_after_shutdown(
    start: Callable[..., Program], arguments: list[str]
) -> None:
    """What comes after shutdown() waits in the kernel's queue for the next serve_forever() or the master's own hand (P08, M05)."""
    program = finished(
        start,
        """
server = Pool(LOOPBACK, Echo)
with serving(server):
    ask(server.server_address)
with connect(server.server_address) as queued, connect(server.server_address) as second:
    send_line(queued, "queued")
    accepted, _ = server.socket.accept()
    tell("in the master", accepted.recv(100).decode())
    accepted.close()
    send_line(second, "second")
    with serving(server):
        tell("served", read_all(second))
server.server_close()
""",
        tuple(arguments),
    )

    assert program.told("in the master") == "queued\n"
    assert program.told("served").endswith("second")


def test_the_listening_socket_stays_as_it_was(start: Callable[..., Program]) -> None:
    """In the master the listening socket looks the same before, during and after serve_forever() (M05, M07, P26)."""
    program = finished(
        start,
        """
def look(server):
    listener = server.socket
    return [
        listener.fileno(),
        listener.gettimeout(),
        listener.getblocking(),
        os.get_blocking(listener.fileno()),
        os.get_inheritable(listener.fileno()),
        listener.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16).hex(),
        listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN),
    ]

server = Pool(LOOPBACK, Echo)
tell("look", look(server))
with serving(server):
    ask(server.server_address)
tell("look", look(server))
server.server_close()
""",
    )

    before, after = program.all_told("look")
    assert before == after


def test_an_accepted_connection_is_an_ordinary_one(start: Callable[..., Program]) -> None:
    """A handler's socket is blocking, without a timeout of any kind, and open in no other process (H05, H07, M20)."""
    program = finished(
        start,
        """
class Looking(Echo):
    def handle(self):
        tell("look", [
            self.connection.gettimeout(),
            self.connection.getblocking(),
            os.get_blocking(self.connection.fileno()),
            os.get_inheritable(self.connection.fileno()),
            self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16).hex(),
            self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, 16).hex(),
        ])
        super().handle()

server = Pool(LOOPBACK, Looking)
with serving(server):
    ask(server.server_address)
server.server_close()
""",
    )

    assert program.told("look") == [None, True, True, False, "00" * 16, "00" * 16]


def test_service_actions_run_in_the_master(start: Callable[..., Program]) -> None:
    """service_actions() is called in the master, at least each poll_interval, while nothing happens (M12, M09)."""
    program = start(
        HEAD
        + """
class Acting(Pool):
    def service_actions(self):
        super().service_actions()
        tell("acted", [os.getpid(), time.monotonic()])

with Acting(LOOPBACK, Echo) as server:
    server.serve_forever(poll_interval=0.02)
"""
    )

    program.told("acted", nth=20)

    acted = program.all_told("acted")
    assert {pid for pid, _ in acted} == {program.pid}
    instants = [instant for _, instant in acted]
    gaps = sorted(later - earlier for earlier, later in itertools.pairwise(instants))
    assert gaps[len(gaps) // 2] < 0.1


def test_an_exception_in_service_actions_leaves(start: Callable[..., Program]) -> None:
    """An exception in service_actions() leaves serve_forever(), after the workers are gone (M12)."""
    program = finished(
        start,
        """
class Failing(Pool):
    served = False
    def service_actions(self):
        super().service_actions()
        if os.path.exists("served"):
            raise ZeroDivisionError("from service_actions")

class Marking(Echo):
    def handle(self):
        super().handle()
        open("served", "w").close()

server = Failing(LOOPBACK, Marking)
client = threading.Thread(target=ask, args=(server.server_address,))
client.start()
try:
    server.serve_forever(poll_interval=0.02)
except ZeroDivisionError:
    tell("raised", [str(child) for child in children_of(os.getpid())])
client.join()
server.shutdown()  # nothing serves any more: returns
server.server_close()
""",
    )

    assert program.all_told("raised") == [[]]


@pytest.mark.parametrize("calling", ["super().service_actions()", "pass"])
def test_an_override_of_service_actions(start: Callable[..., Program], calling: str) -> None:
    """A dead worker is collected and replaced, whether an override of service_actions() calls super() or forgets it (M12, K02, P01)."""
    program = start(
        HEAD
        + f"""
class Acting(Pool):
    def service_actions(self):
        {calling}

serve_here(Acting, Echo)
"""
    )
    ask(program.address())
    first = program.wait_workers(2)

    os.kill(min(first), signal.SIGKILL)

    wait_until(lambda: len(program.workers()) == 2 and program.workers() != first, "a new worker")
    wait_until(lambda: not zombies_of(program.pid), "the dead one is reaped")
    assert server_of(program.address()) in program.workers()


def test_active_children(start: Callable[..., Program]) -> None:
    """active_children is falsy before and after serve_forever(), and the set of the live workers meanwhile (A10, K05)."""
    program = finished(
        start,
        """
server = Pool(LOOPBACK, Echo)
tell("before", bool(server.active_children))
with serving(server):
    wait_until(lambda: len(server.active_children or ()) == 2, "two children")
    tell("during", server.active_children == live_children_of(os.getpid()))
    tell("kind", type(server.active_children).__name__)
tell("after", bool(server.active_children))
server.server_close()
""",
    )

    facts = {key: program.told(key) for key in ("before", "during", "kind", "after")}
    assert facts == {"before": False, "during": True, "kind": "set", "after": False}


@pytest.mark.parametrize("block_on_close", [True, False])
def test_server_close(start: Callable[..., Program], block_on_close: bool) -> None:
    """After shutdown() and server_close() the port is free and nobody is left, whatever block_on_close says (M14, A13, P02)."""
    program = finished(
        start,
        f"""
class Server(Pool):
    block_on_close = {block_on_close}

server = Server(LOOPBACK, Echo)
with serving(server):
    ask(server.server_address)
server.server_close()
tell("children", [str(child) for child in children_of(os.getpid())])
tell("closed", server.socket.fileno())
server.server_close()
announce(server)
""",
    )

    assert program.told("children") == []
    assert program.told("closed") == -1
    assert can_bind(program.address())


@pytest.mark.parametrize("block_on_close", [True, False])
def test_server_close_while_another_thread_serves(
    start: Callable[..., Program], block_on_close: bool
) -> None:
    """server_close() stops a pool that another thread serves; block_on_close says whether it waits for the workers (A13, P02)."""
    program = finished(
        start,
        f"""
class Server(Pool):
    block_on_close = {block_on_close}

class Slow(Echo):
    def handle(self):
        super().handle()
        tell("at work")
        wait_until(lambda: self.server.stopping, "the worker is asked to leave")
        if not self.server.block_on_close:
            wait_until(lambda: os.path.exists("closed"), "server_close() has returned")
        self.wfile.write(b"finished")

server = Server(LOOPBACK, Slow)
serve = threading.Thread(target=server.serve_forever)
serve.start()
with connect(server.server_address) as client:
    send_line(client, "hello")
    wait_until(lambda: server.active_children, "workers")
    client.recv(1)
    server.server_close()
    tell("children", bool(live_children_of(os.getpid())))
    open("closed", "w").close()
    tell("answer", read_all(client))
serve.join()
tell("children", bool(live_children_of(os.getpid())))
""",
    )

    assert program.told("answer").endswith("hello\nfinished")
    assert program.all_told("children") == [not block_on_close, False]


def test_settings_of_the_instance_count(start: Callable[..., Program]) -> None:
    """A number of workers set on the instance after its constructor is what serve_forever() reads (D13, A14)."""
    program = start(HEAD + "serve_here(Pool, Echo, workers=3, max_children=3)")

    assert len(program.wait_workers(3)) == 3


def test_bind_and_activate_later(start: Callable[..., Program]) -> None:
    """A server made with bind_and_activate=False serves after its user has bound and activated it (M02)."""
    program = start(
        HEAD
        + """
server = Pool(LOOPBACK, Echo, bind_and_activate=False)
server.allow_reuse_address = True
server.server_bind()
server.server_activate()
announce(server)
with server:
    server.serve_forever()
"""
    )

    assert ask(program.address()).endswith("hello")


def test_constructor_called_by_name(start: Callable[..., Program]) -> None:
    """A class that calls TCPServer.__init__ directly, as SimpleXMLRPCServer does, misses nothing of the mix-in (M01)."""
    program = start(
        HEAD
        + """
import prefork
import socketserver

class Own(prefork.PreForkingMixIn, socketserver.TCPServer):
    workers = 1
    def __init__(self, greeting):
        self.greeting = greeting
        socketserver.TCPServer.__init__(self, LOOPBACK, Echo)

with Own("hi") as server:
    announce(server)
    server.serve_forever()
"""
    )

    assert ask(program.address()).endswith("hello")


def test_terminate_returns_from_serve_forever(start: Callable[..., Program]) -> None:
    """After TERM serve_forever() returns, the statements after it run, and the program's signal handlers are back (M08, D31)."""
    program = start(
        HEAD
        + """
numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1,
           signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU, signal.SIGWINCH, signal.SIGCHLD, signal.SIGPIPE]

def signals():
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    return [wakeup, sorted(mask), *(repr(signal.getsignal(number)) for number in numbers)]

signal.signal(signal.SIGUSR2, signal.SIG_IGN)
tell("signals", signals())
serve_here(Pool, Echo)
tell("signals", signals())
"""
    )
    ask(program.address())

    assert program.stop() == 0

    program.wait_silent()
    assert program.all_told("left") == [None]
    assert program.all_told("closed") == [None]
    before, after = program.all_told("signals")
    assert before == after


def test_serving_from_a_thread_touches_no_signal(start: Callable[..., Program]) -> None:
    """serve_forever() in another thread leaves the program's signal handlers alone (M08)."""
    program = finished(
        start,
        """
numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD]
server = Pool(LOOPBACK, Echo)
before = [signal.getsignal(number) for number in numbers]
with serving(server):
    ask(server.server_address)
    tell("same", before == [signal.getsignal(number) for number in numbers])
server.server_close()
""",
    )

    assert program.told("same") is True


def test_shutdown_in_a_handler(start: Callable[..., Program]) -> None:
    """shutdown() in a worker's handler asks the master to stop and returns, so that the answer gets out (M13, P06)."""
    program = start(
        HEAD
        + """
class Stopping(Echo):
    def handle(self):
        super().handle()
        self.server.shutdown()
        self.wfile.write(b"stopped")

serve_here(Pool, Stopping)
"""
    )

    assert ask(program.address()).endswith("hello\nstopped")

    assert program.wait() == 0
    program.wait_silent()
    assert program.all_told("closed") == [None]


def test_two_pools_in_one_process(start: Callable[..., Program]) -> None:
    """Pools of one process are strangers: one stops, its port is free, and the other serves on (P23)."""
    program = finished(
        start,
        """
one, two = Pool(LOOPBACK, Echo), Pool(LOOPBACK, Echo)
with serving(two):
    ask(two.server_address)
    with serving(one):
        ask(one.server_address)
        for pool in (one, two):
            wait_until(lambda: len(pool.active_children or ()) == 2, "the master knows its workers")
        mine = set(one.active_children)
        wait_until(lambda: len(live_children_of(os.getpid())) == 4, "four workers")
        # replace workers of both, so that each pool has forked after the other
        os.kill(min(two.active_children), signal.SIGKILL)
        wait_until(lambda: len(live_children_of(os.getpid())) == 4, "four workers again")
        ask(two.server_address)
    tell("one left", sorted(mine & live_children_of(os.getpid())))
    one.server_close()
    # A worker of the other pool that has just been forked may still be closing its copy.
    wait_until(lambda: can_bind(one.server_address), "the port is free")
    tell("two serves", ask(two.server_address))
two.server_close()
""",
    )

    assert program.told("one left") == []
    assert program.told("two serves").endswith("hello")


def test_one_server_after_the_other(start: Callable[..., Program]) -> None:
    """A process may serve, stop, and serve with another server, as often as it likes (M08, M13)."""
    program = finished(
        start,
        """
tell("descriptors", sorted(os.listdir("/proc/self/fd")))
for _ in range(3):
    with Pool(LOOPBACK, Echo) as server:
        with serving(server):
            tell("served", ask(server.server_address))
tell("descriptors", sorted(os.listdir("/proc/self/fd")))
""",
    )

    assert len(program.all_told("served")) == 3
    before, after = program.all_told("descriptors")
    assert before == after


def test_children_of_the_program_keep_their_status(start: Callable[..., Program]) -> None:
    """The embedding program's own children are not reaped by the pool, however many workers die (K01, P03)."""
    program = finished(
        start,
        """
own = subprocess.Popen(["sh", "-c", "exit 7"])
server = Pool(LOOPBACK, Echo)
with serving(server):
    ask(server.server_address)
    wait_until(lambda: len(server.active_children or ()) == 2, "two workers")
    victim = min(server.active_children)
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: victim not in server.active_children, "the dead worker is collected")
    ask(server.server_address)
server.server_close()
tell("status", own.wait())
""",
    )

    assert program.told("status") == 7


def test_somebody_else_reaps_a_worker(start: Callable[..., Program]) -> None:
    """A program that waits for any child may take a worker's status away; the worker is replaced all the same (P03)."""
    program = finished(
        start,
        """
server = Pool(LOOPBACK, Echo)
with serving(server):
    ask(server.server_address)
    wait_until(lambda: len(server.active_children or ()) == 2, "two workers")
    for _ in range(3):
        victim = min(server.active_children)
        os.kill(victim, signal.SIGKILL)
        try:
            os.waitpid(victim, 0)
        except ChildProcessError:
            pass  # the pool was faster
        wait_until(lambda: victim not in server.active_children, "the dead worker is missed")
        wait_until(lambda: len(server.active_children or ()) == 2, "two workers again")
    tell("served", ask(server.server_address))
server.server_close()
""",
    )

    assert program.told("served").endswith("hello")


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_request_in_flight_is_finished(start: Callable[..., Program], stop: int) -> None:
    """A graceful stop lets a handler finish that is at work, and tells it through server.stopping (A12, P31)."""
    program = start(
        HEAD
        + """
class Slow(Echo):
    def handle(self):
        line = self.rfile.readline()
        tell("at work")
        wait_until(lambda: self.server.stopping, "the worker is asked to leave")
        self.wfile.write(b"finished " + line)

try:
    serve_here(Pool, Slow)
except KeyboardInterrupt:
    tell("interrupted")
"""
    )

    with connect(program.address()) as client:
        send_line(client, "work")
        program.told("at work")
        program.signal(stop)
        assert read_all(client) == "finished work"

    assert program.wait() == 0


def test_without_workers(start: Callable[..., Program]) -> None:
    """With workers = 0 the requests are served in this process, as the server class itself does (A14)."""
    program = finished(
        start,
        """
server = Pool(LOOPBACK, Echo)
server.workers = 0
with serving(server, poll_interval=0.01):
    tell("served", ask(server.server_address))
    tell("children", [str(child) for child in children_of(os.getpid())])
server.server_close()
""",
    )

    assert program.told("served") == f"{program.pid} hello"
    assert program.told("children") == []


def test_server_close_without_workers_stops_it(start: Callable[..., Program]) -> None:
    """With workers = 0, server_close() from another thread stops and closes a server that is served."""
    program = finished(
        start,
        """
server = Pool(LOOPBACK, Echo)
server.workers = 0
serve = threading.Thread(target=server.serve_forever, args=(0.01,))
serve.start()
tell("served", ask(server.server_address))
server.server_close()
serve.join()
tell("open", server.fileno() >= 0)
""",
    )

    assert program.told("open") is False


def test_close_that_raises_leaves_nobody_waiting(start: Callable[..., Program]) -> None:
    """When the class behind raises in server_close(), who has called it is woken all the same, and it can serve again."""
    program = finished(
        start,
        """
class Failing:
    def server_close(self):
        tell("raises")
        raise RuntimeError("on purpose")

class Server(Pool.__mro__[1], Failing, Pool.__mro__[2]):
    workers = 1

def serve():
    try:
        server.serve_forever()
    except RuntimeError as error:
        tell("raised", str(error))

server = Server(LOOPBACK, Echo)
for _ in range(2):
    thread = threading.Thread(target=serve)
    thread.start()
    tell("served", ask(server.server_address))
    server.server_close()
    thread.join()
server.socket.close()
""",
    )

    assert program.all_told("raised") == ["on purpose"] * 2


def test_default_timeout_of_sockets(start: Callable[..., Program]) -> None:
    """A program that sets a default timeout for all sockets has a pool that serves and stops at once (M09, M10)."""
    program = finished(
        start,
        """
socket.setdefaulttimeout(60)
server = Pool(LOOPBACK, Echo)
server.timeout = 60
with serving(server, poll_interval=60):
    tell("served", ask(server.server_address))
    watch = Stopwatch()
tell("seconds", watch.seconds)
tell("timeout", server.socket.gettimeout())
server.server_close()
""",
    )

    assert program.told("served").endswith("hello")
    assert program.told("seconds") < 2
    assert program.told("timeout") == 60


def test_threads_hold_locks_at_every_fork(start: Callable[..., Program]) -> None:
    """Threads that print, log and import all the time do not keep a worker from its first request (P18)."""
    program = finished(
        start,
        """
import logging
sys.stdout = open("printed", "w")
logging.basicConfig(filename="logged", level=logging.DEBUG)
ending = threading.Event()

def repeat(action):
    while not ending.is_set():
        action()

def import_again():
    sys.modules.pop("colorsys", None)
    import colorsys

def log_and_trim():
    logging.warning("y" * 100)
    os.truncate("logged", 0)

def print_and_trim():
    print("x" * 100)
    os.truncate("printed", 0)

for action in (print_and_trim, log_and_trim, import_again):
    threading.Thread(target=repeat, args=(action,)).start()
server = Pool(LOOPBACK, Echo)
with serving(server):
    for _ in range(20):
        wait_until(lambda: len(server.active_children or ()) == 2, "two workers")
        tell("served", ask(server.server_address))
        victim = min(server.active_children)
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: victim not in server.active_children, "the dead one is collected")
    ending.set()
server.server_close()
""",
    )

    assert len(program.all_told("served")) == 20


def test_warnings_are_errors(start: Callable[..., Program]) -> None:
    """A pool served from the main thread of a program without threads makes no warning, not even about fork (P18)."""
    program = start(HEAD + "serve_here(Pool, Echo)", environ={"PYTHONWARNINGS": "error"})
    ask(program.address())
    first = program.wait_workers(2)

    os.kill(min(first), signal.SIGKILL)

    wait_until(lambda: len(program.workers()) == 2 and program.workers() != first, "a new worker")
    assert ask(program.address()).endswith("hello")
    assert program.stop() == 0
    assert "Warning" not in program.log
