"""A worker is born as a child of multiprocessing, and ends as any Python process ends."""

from __future__ import annotations

import contextlib
import json
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.clients import ask, can_bind, hangs_up, read_to_the_end, send
from tests.support.processes import is_alive
from tests.support.waiting import Stopwatch, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.clients import Address
    from tests.support.server import Program

USER = """
from tests.support.app import *
import atexit, concurrent.futures, json, logging.handlers, multiprocessing, socketserver
import tempfile, weakref
import prefork

def say(what):
    tell(what, os.getpid())

class Telling(logging.Handler):
    def emit(self, record):
        say(record.getMessage())

class Thing:
    pass

def use(owner):
    '''Have this process register and start whatever its end has to take care of.'''
    atexit.register(say, owner + " atexit")
    thing = Thing()
    weakref.finalize(thing, say, owner + " finalizer")
    folder = tempfile.TemporaryDirectory(prefix="end-test-")
    records = logging.handlers.MemoryHandler(1000, target=Telling())
    records.handle(logging.makeLogRecord({"msg": owner + " record", "levelno": 20}))
    threads = concurrent.futures.ThreadPoolExecutor(1)
    threads.submit(lambda: None)
    processes = concurrent.futures.ProcessPoolExecutor(1)
    daemon = multiprocessing.Process(target=time.sleep, args=(600,), daemon=True)
    daemon.start()
    pids = [daemon.pid, processes.submit(os.getpid).result()]
    file = open(os.dup(1), "w")
    print(json.dumps([owner + " file", os.getpid()]), file=file)  # stays in the buffer
    return [thing, folder, records, threads, processes, daemon, file], [folder.name, *pids]

class Uses(socketserver.StreamRequestHandler):
    def handle(self):
        word = self.rfile.readline().strip().decode()
        if word == "use":
            kept, facts = use("worker")
            self.server.kept = kept
            kept[3].submit(lambda: (time.sleep(0.3), say("worker thread")))
            self.wfile.write(json.dumps([os.getpid(), *facts]).encode())
        elif word == "exit":
            sys.exit(0)
"""

ENDED_OF_WORKER = [
    "worker atexit",
    "worker file",
    "worker finalizer",
    "worker record",
    "worker thread",
]


def stop(program: Program, _worker: int) -> None:
    """End the worker by a stop of the pool."""
    program.terminate()


def reload(program: Program, _worker: int) -> None:
    """End the worker by a reload."""
    program.signal(signal.SIGHUP)


def orphan(program: Program, _worker: int) -> None:
    """End the worker by the loss of its master."""
    program.signal(signal.SIGKILL)


def leave(program: Program, _worker: int) -> None:
    """End the worker by sys.exit() in a handler."""
    hangs_up(program.address(), "exit")


def reach_limit(program: Program, _worker: int) -> None:
    """End the worker by max_requests, the request being the second."""
    hangs_up(program.address(), "nothing")


@pytest.mark.parametrize("way", [stop, reload, orphan, leave, reach_limit])
def test_what_a_worker_started_ends_with_it(
    start: Callable[..., Program], way: Callable[[Program, int], None]
) -> None:
    """However a worker leaves, its executors, children, folders, files, atexit functions and log records end in order."""
    most = 2 if way is reach_limit else None
    program = start(f"{USER}\nserve(Uses, workers=1, max_requests={most})\n")
    worker, folder, *children = json.loads(ask(program.address(), "use"))
    assert all(map(is_alive, children))

    way(program, worker)

    wait_until(lambda: not is_alive(worker), "the end of the worker")
    for what in ENDED_OF_WORKER:
        assert program.told(what) == worker
    assert not [child for child in children if is_alive(child)]
    assert not Path(folder).exists()


def test_what_the_master_started_ends_in_the_master_alone(start: Callable[..., Program]) -> None:
    """No worker ends, removes or writes what the master has registered; the master does when it ends."""
    program = start(f"""{USER}
kept, facts = use("master")
tell("facts", facts)

def when_ready(self):
    announce(self)
    kept.append(open(os.dup(1), "w"))
    print(json.dumps(["master late file", os.getpid()]), file=kept[-1])

serve(Uses, workers=2, fork_check="off", max_requests=1, when_ready=when_ready)
""")
    folder, *children = program.told("facts")
    address = program.address()
    wait_until(
        lambda: (
            hangs_up(address, "nothing") or len(program.logged("exited cause=max_requests")) > 2
        ),
        "the end of three workers",
    )

    ends = ("atexit", "file", "late file", "finalizer", "record")
    assert not any(program.all_told(f"master {what}") for what in ends)
    assert Path(folder).exists()
    assert all(map(is_alive, children))

    assert program.stop() == 0
    program.wait_silent()
    for what in ends:
        assert program.all_told(f"master {what}") == [program.pid]
    assert not Path(folder).exists()


def test_nothing_that_a_worker_has_forked_keeps_the_address(start: Callable[..., Program]) -> None:
    """After a stop the address can be bound at once, although workers had a process pool each."""
    program = start(f"{USER}\nserve(Uses, workers=2)\n")
    address = program.address()
    for _ in range(4):
        ask(address, "use")
    assert program.stop() == 0
    assert can_bind(address)  # type: ignore[arg-type]
    program.wait_silent()


# --- the bound


HANGS = """
import logging
from tests.support.app import *
import atexit

def hang_for_ever():
    threading.Event().wait()

def worker_init(self, worker):
    atexit.register(hang_for_ever)

class Uses(Run):
    def handle(self):
        super().handle()
"""


@pytest.mark.parametrize("line", ["None", "sys.exit(0)"])
def test_end_that_hangs_is_dumped_and_killed(start: Callable[..., Program], line: str) -> None:
    """At graceful_timeout the log names the call in which a worker's end hangs, and the worker is killed."""
    program = start(
        f"{HANGS}\nserve(Uses, workers=1, worker_init=worker_init, graceful_timeout=0.5)\n"
    )
    worker = program.wait_workers(1).pop()
    hangs_up(program.address(), line)
    if line == "None":
        program.terminate()

    program.wait_logged(rf"pid={worker} stacks state=retiring")
    program.wait_logged(rf"pid={worker} killed")
    program.wait_logged("in hang_for_ever")


def test_worker_that_hangs_after_an_exit_is_replaced_before_its_end(
    start: Callable[..., Program],
) -> None:
    """A worker that leaves unasked and hangs costs the pool its place for about a second, not for graceful_timeout."""
    program = start(
        f"{HANGS}\nserve(Uses, workers=1, worker_init=worker_init, graceful_timeout=60.0)\n"
    )
    address = program.address()
    worker = program.wait_workers(1).pop()
    hangs_up(address, "sys.exit(0)")

    watch = Stopwatch()
    other = int(ask(address, "None").split()[0])

    assert other != worker
    assert is_alive(worker)
    assert watch.seconds < 10
    program.signal(signal.SIGQUIT)  # a stop at once
    program.wait()


def test_orphan_whose_end_hangs_is_ended_by_its_own_bound(start: Callable[..., Program]) -> None:
    """A worker without a master writes its stacks to standard error at graceful_timeout, and is ended."""
    program = start(
        f"{HANGS}\nserve(Uses, workers=1, worker_init=worker_init, graceful_timeout=0.5)\n"
    )
    program.address()  # the worker has booted
    worker = program.wait_workers(1).pop()
    program.signal(signal.SIGKILL)
    wait_until(lambda: not is_alive(worker), "the end of the orphan")
    program.wait_logged("in hang_for_ever")


def test_orphan_that_hangs_is_ended_although_nothing_reads_its_stacks(
    start: Callable[..., Program],
) -> None:
    """The bound of an orphan holds also where standard error is a full pipe."""
    program = start(f"""{HANGS}
import fcntl

def fill_standard_error(self, worker):
    worker_init(self, worker)
    reader, writer = os.pipe()
    os.dup2(writer, 2)
    os.set_blocking(2, False)
    try:
        while True:
            os.write(2, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(2, True)

serve(Uses, workers=1, worker_init=fill_standard_error, graceful_timeout=0.5)
""")
    worker = program.wait_workers(1).pop()
    ask(program.address(), "None")
    program.signal(signal.SIGKILL)
    wait_until(lambda: not is_alive(worker), "the end of the orphan")


def test_failed_boot_ends_what_it_started_and_keeps_its_traceback(
    start: Callable[..., Program],
) -> None:
    """A worker whose worker_init() raises ends its executors, and the log has the traceback and not a timeout."""
    program = start(f"""{USER}
def worker_init(self, worker):
    self.kept, facts = use("worker")
    tell("facts", facts)
    raise RuntimeError("a mistake in worker_init")

serve(Uses, workers=1, worker_init=worker_init)
""")
    folder, *children = program.told("facts")
    program.wait()
    assert "a mistake in worker_init" in program.log
    assert not [child for child in children if is_alive(child)]
    assert not Path(folder).exists()


def test_failed_boot_whose_end_hangs_keeps_its_traceback(start: Callable[..., Program]) -> None:
    """Where a thread of a worker that cannot boot never ends, the log still has the traceback of worker_init()."""
    program = start("""
from tests.support.app import *
def worker_init(self, worker):
    threading.Thread(target=time.sleep, args=(600,)).start()
    raise RuntimeError("a mistake in worker_init")

serve(Echo, workers=1, worker_init=worker_init)
""")
    program.wait()
    assert "a mistake in worker_init" in program.log
    assert "cause=boot_error" in program.log


def test_children_of_a_worker_obey_terminate(start: Callable[..., Program]) -> None:
    """Process.terminate() ends what a handler has started with multiprocessing, which inherits no handler for TERM."""
    program = start("""
from tests.support.app import *
import multiprocessing, socketserver
class Starts(socketserver.StreamRequestHandler):
    def handle(self):
        self.rfile.readline()
        child = multiprocessing.Process(target=time.sleep, args=(600,))
        child.start()
        child.terminate()
        child.join()
        self.wfile.write(b"%d" % child.exitcode)
serve(Starts, workers=1)
""")
    assert int(ask(program.address())) == -signal.SIGTERM


# --- the birth


SHARING = """
from tests.support.app import *
import concurrent.futures, json, multiprocessing, multiprocessing.shared_memory, socketserver
import prefork

queue = multiprocessing.Queue()
queue.put("from the master")
assert queue.get() == "from the master"
manager = multiprocessing.Manager()
shared = manager.dict()
shared["used"] = True
lock = multiprocessing.Lock()
value = multiprocessing.Value("q", 0)
memory = multiprocessing.shared_memory.SharedMemory(create=True, size=16)
child = multiprocessing.Process(target=time.sleep, args=(600,), daemon=True)
child.start()

def double(number):
    return 2 * number

class Shares(socketserver.StreamRequestHandler):
    def handle(self):
        word = self.rfile.readline().strip().decode()
        if word:
            answer = globals()[word]()
            self.wfile.write(json.dumps(answer).encode())

def identity():
    me, parent = multiprocessing.current_process(), multiprocessing.parent_process()
    return dict(
        pid=me.pid == os.getpid(), name=me.name, children=len(multiprocessing.active_children()),
        parent=parent.pid, parent_lives=parent.is_alive(), key=me.authkey.hex(),
        identity=me._identity, native=threading.main_thread().native_id == os.getpid(),
    )

def put():
    queue.put(os.getpid())
    return os.getpid()

def add():
    for _ in range(200):
        with lock, value.get_lock():
            value.value += 1

def through_the_manager():
    wrong = 0
    for number in range(100):
        shared[os.getpid()] = number
        wrong += shared[os.getpid()] != number
    return wrong

def in_memory():
    memory.buf[:4] = b"seen"

def pools():
    with multiprocessing.Pool(2) as pool:
        first = pool.map(double, [1, 2])
    with concurrent.futures.ProcessPoolExecutor(2) as executor:
        second = list(executor.map(double, [3, 4]))
    with concurrent.futures.ThreadPoolExecutor(2) as executor:
        return first + second + list(executor.map(double, [5, 6]))

tell("key", multiprocessing.current_process().authkey.hex())
serve(Shares, workers=4, fork_check="off")
got = [queue.get(timeout=10) for _ in range(8)]
tell("got", got)
tell("value", value.value)
tell("memory", bytes(memory.buf[:4]).decode())
tell("children", child.is_alive())
memory.close()
memory.unlink()
"""


def ask_at_once(address: Address, word: str, times: int) -> list[str]:
    """Ask the same of several workers at once; return the answers."""
    with contextlib.ExitStack() as clients:
        asked = [clients.enter_context(send(address, word)) for _ in range(times)]
        return [read_to_the_end(client) for client in asked]


def test_what_multiprocessing_shares_works_in_every_worker(start: Callable[..., Program]) -> None:
    """Queue, Manager, Lock, Value, shared memory and pools work in workers as in a multiprocessing.Process."""
    program = start(SHARING)
    address = program.address()
    put = [json.loads(ask(address, "put")) for _ in range(8)]
    assert ask_at_once(address, "through_the_manager", 8) == ["0"] * 8
    ask_at_once(address, "add", 8)
    ask(address, "in_memory")
    assert json.loads(ask(address, "pools")) == [2, 4, 6, 8, 10, 12]
    program.terminate()
    assert sorted(program.told("got")) == sorted(put)
    assert program.told("value") == 8 * 200
    assert program.told("memory") == "seen"
    assert program.told("children") is True
    assert program.wait() == 0


def test_worker_is_a_process_of_its_own_to_multiprocessing(start: Callable[..., Program]) -> None:
    """A worker has a name, no children, the master as its living parent, and the master's key."""
    program = start(SHARING)
    found: dict[str, Any] = json.loads(ask(program.address(), "identity"))
    slot = int(re.fullmatch(r"worker-(\d)", found["name"])[1])  # type: ignore[index]
    assert found == {
        "pid": True,
        "name": f"worker-{slot}",
        "children": 0,
        "parent": program.pid,
        "parent_lives": True,
        "key": program.told("key"),
        "identity": [slot + 1],
        "native": True,
    }
    for _ in range(8):
        ask(program.address(), "put")
    program.terminate()
    program.wait()


def test_worker_starts_processes_by_a_fork_server_of_its_own(
    start: Callable[..., Program],
) -> None:
    """Where the master has used the start method forkserver, its workers can use it, too, and so can the master afterwards."""
    program = start("""
from tests.support.app import *
import multiprocessing, socketserver
context = multiprocessing.get_context("forkserver")

def exit_code():
    process = context.Process(target=time.sleep, args=(0,))
    process.start()
    process.join()
    return process.exitcode

class Starts(socketserver.StreamRequestHandler):
    def handle(self):
        if self.rfile.readline():
            self.wfile.write(b"%d" % exit_code())

if __name__ == "__main__":
    exit_code()
    serve(Starts, workers=1, fork_check="off")
    tell("exit code", exit_code())
""")
    assert ask(program.address(), "start") == "0"
    program.terminate()
    assert program.told("exit code") == 0


def test_queue_that_a_request_has_filled_is_written_to_its_end(
    start: Callable[..., Program],
) -> None:
    """Nothing that an answered request has put into a queue is lost by a stop."""
    program = start("""
from tests.support.app import *
import multiprocessing, socketserver
queue = multiprocessing.Queue()
class Puts(socketserver.StreamRequestHandler):
    def handle(self):
        self.rfile.readline()
        for number in range(2000):
            queue.put((number, "x" * 200))
        self.wfile.write(b"done")

def read():
    tell("got", [queue.get()[0] for _ in range(2000)])
reader = threading.Thread(target=read)

def when_ready(self):
    announce(self)
    reader.start()
serve(Puts, workers=1, when_ready=when_ready)
reader.join()
""")
    assert ask(program.address()) == "done"
    program.terminate()
    assert program.told("got") == list(range(2000))


def test_multiprocessing_is_not_imported_for_a_worker(start: Callable[..., Program]) -> None:
    """A program that does without multiprocessing does not get it from prefork, neither at birth nor at the end."""
    program = start("""
from tests.support.app import *
import atexit
def loaded():
    return sorted({name.split(".")[0] for name in sys.modules} & {"multiprocessing", "concurrent"})
def worker_init(self, worker):
    atexit.register(lambda: tell("at the end", loaded()))
serve(Echo, workers=1, worker_init=worker_init)
""")
    program.address()
    program.terminate()
    assert program.told("at the end") == []


def test_pool_in_a_thread_ends_as_any(start: Callable[..., Program]) -> None:
    """Workers that were forked by another thread than the main one end in order, too."""
    program = start(f"""{USER}
class Server(prefork.PreForkingTCPServer):
    workers, fork_check, when_ready = 1, "off", announce
log_to_stderr()
server = Server(LOOPBACK, Uses)
thread = threading.Thread(target=server.serve_forever)
thread.start()
while not os.path.exists("stop"):
    time.sleep(0.005)
server.shutdown()
thread.join()
server.server_close()
""")
    worker, folder, *children = json.loads(ask(program.address(), "use"))
    Path(program.stderr_path).with_name("stop").touch()
    program.wait()
    for what in ENDED_OF_WORKER:
        assert program.told(what) == worker
    assert not [child for child in children if is_alive(child)]
    assert not Path(folder).exists()
