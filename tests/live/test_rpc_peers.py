"""Programs of others against ONC RPC: rpcinfo, a client made by rpcgen, and rpcbind in a network of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.waiting import CEILING, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.server import Program

pytestmark = pytest.mark.once  # the other side is no Python

EXAMPLE = Path(__file__).parents[2] / "examples" / "rpc"
NUMBER = str(0x20000042)

LONG = 3 * CEILING
"""Seconds for a compiler, and for a pause between two tries that has grown."""


def needs(*commands: str) -> None:
    """Skip the test where a program is missing."""
    for one in commands:
        if shutil.which(one) is None and not os.path.exists(os.path.join("/usr/sbin", one)):
            pytest.skip(f"{one} is not installed")


def run(*command: str | Path) -> str:
    """Run a command to its end, and return what it has printed; it has to succeed."""
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
        env={**os.environ, "PATH": path},
    )
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


def port_of(program: Program) -> int:
    """Return the port of the example, once its pool is ready."""
    program.wait_logged("master pid=.* ready")
    (line,) = [one for one in program.log.splitlines() if "tcp://127.0.0.1:" in one][:1]
    return int(line.partition("tcp://127.0.0.1:")[2].split()[0])


@pytest.fixture(name="example")
def _example(start: Callable[..., Program], tmp_path: Path) -> tuple[Program, int, Path]:
    """Start the example; return the program, its port and its path."""
    needs("rpcinfo", "rpcgen", "gcc", "/usr/include/tirpc/rpc/rpc.h")
    path = tmp_path / "rpc.sock"
    source = f"import runpy, sys\nfrom tests.support.app import log_to_stderr\nlog_to_stderr()\nsys.argv[1:] = ['0', {str(path)!r}]\n"
    source += f"runpy.run_path({str(EXAMPLE / 'server.py')!r}, run_name='__main__')\n"
    program = start(source)
    return program, port_of(program), path


def test_example_with_programs_in_c(example: tuple[Program, int, Path], tmp_path: Path) -> None:
    """A client made by rpcgen and rpcinfo call the example on TCP, on UDP and on its Unix socket."""
    program, port, path = example
    universal = f"127.0.0.1.{port >> 8}.{port & 255}"
    for transport, address in (("tcp", universal), ("udp", universal), ("local", str(path))):
        asked = run("rpcinfo", "-T", transport, "-a", address, NUMBER)
        assert asked == f"program {NUMBER} version 1 ready and waiting\n"

    for flag, name in (("-h", "calculator.h"), ("-l", "stubs.c"), ("-c", "xdr.c")):
        made = run("rpcgen", flag, EXAMPLE / "calculator.x")
        made = made.replace(str(EXAMPLE / "calculator.h"), "calculator.h")
        (tmp_path / name).write_text(made)
    sources = [EXAMPLE / "client.c", tmp_path / "stubs.c", tmp_path / "xdr.c"]
    flags = ("-I/usr/include/tirpc", f"-I{tmp_path}", "-w")
    run("gcc", *flags, *sources, "-ltirpc", "-o", tmp_path / "client")
    user = f"auth_sys:uid={os.geteuid()}"
    for transport, host in (("tcp", "127.0.0.1"), ("udp", "127.0.0.1"), ("local", str(path))):
        said = run(tmp_path / "client", transport, host, str(port), "6", "-7")
        assert said.splitlines() == ["-1 -0.5", "no mean of nothing", user]
    assert program.stop() == 0


# A network with nothing but a loopback interface, and a /run of its own, for an rpcbind of its own.
APART = """
mount -t tmpfs tmpfs /run
"$0" -c 'import fcntl, socket, struct
fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sh14x", b"lo", 0x41))'
exec "$@"
"""

SERVER = """
    from tests.support.app import *
    import prefork
    from prefork.rpc import *

    tell("apart")

    class One(Program):
        number, version = 0x20000042, 1

    class Two(One):
        version = 2

    programs = [One, Two] if os.path.exists("second") else [One]

    class Settings:
        rpcbind = "try"
        workers = 1

    class TCP(Settings, RPCServer):
        pass

    class UDP(Settings, UDPRPCServer):
        pass

    class Unix(Settings, UnixRPCServer):
        pass

    log_to_stderr()
    with TCP(LOOPBACK, programs) as tcp, UDP(("::", 0), programs) as udp, Unix("rpc.sock", programs) as unix:
        prefork.serve(tcp, udp, unix)
"""


class Apart:
    """A program in a network of its own, and commands in the same."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.pid = program.pid
        """A process that lives there."""
        self._rpcbind: subprocess.Popen[bytes] | None = None

    def command(self, *command: str) -> list[str]:
        """Return a command as it runs there."""
        return ["nsenter", "-t", str(self.pid), "--net", "--mount", *command]

    def start_rpcbind(self) -> None:
        """Start an rpcbind."""
        self._rpcbind = subprocess.Popen(self.command("/usr/sbin/rpcbind", "-f"))
        wait_until(self._has_rpcbind, "rpcbind answers")

    def _has_rpcbind(self) -> bool:
        command = self.command("/usr/sbin/rpcinfo", "-p")
        return not subprocess.run(command, capture_output=True, check=False).returncode

    def end_rpcbind(self) -> None:
        """End the rpcbind."""
        if self._rpcbind is not None:
            self._rpcbind.terminate()
            self._rpcbind.wait(CEILING)
            self._rpcbind = None

    def registered(self) -> set[tuple[str, str]]:
        """Return version and transport of each entry of the program; rpcbind may not be there."""
        done = subprocess.run(
            self.command("/usr/sbin/rpcinfo"),
            capture_output=True,
            text=True,
            timeout=CEILING,
            check=False,
        )
        rows = [line.split() for line in done.stdout.splitlines()]
        return {(row[1], row[2]) for row in rows if row and row[0] == NUMBER}


@pytest.fixture(name="start_apart")
def _start_apart(start: Callable[..., Program]) -> Iterator[Callable[[str], Apart]]:
    """``start_apart(source)`` starts a program apart from the machine's network."""
    needs("rpcbind", "rpcinfo", "unshare", "nsenter")
    unshare = ["unshare", "--net", "--mount"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no network of its own can be made here; that needs root")
    with contextlib.ExitStack() as ends:

        def start_apart(source: str) -> Apart:
            before = [*unshare, "sh", "-c", APART, sys.executable]
            apart = Apart(start(source, before=before))
            apart.program.told("apart")  # before, a command would land in the machine's own network
            ends.callback(apart.end_rpcbind)
            return apart

        yield start_apart


ALL = {("1", netid) for netid in ("tcp", "udp", "udp6", "local")}


def test_rpcbind_of_debian(start_apart: Callable[[str], Apart], tmp_path: Path) -> None:
    """Programs are registered once rpcbind is there, again after its restart, over a reload, and until the stop."""
    apart = start_apart(SERVER)
    program = apart.program
    program.wait_logged("cannot register with rpcbind, retrying", times=3)
    apart.start_rpcbind()
    wait_until(lambda: apart.registered() == ALL, "all is registered", LONG)
    portmapper = run(*apart.command("/usr/sbin/rpcinfo", "-p"))
    assert {line.split()[2] for line in portmapper.splitlines() if NUMBER in line} == {"tcp", "udp"}
    for transport in ("tcp", "udp"):
        asked = run(*apart.command("/usr/sbin/rpcinfo", "-T", transport, "127.0.0.1", NUMBER))
        assert asked == f"program {NUMBER} version 1 ready and waiting\n"

    apart.end_rpcbind()
    apart.start_rpcbind()
    wait_until(lambda: apart.registered() == ALL, "all is registered again", LONG)

    (tmp_path / "second").touch()
    program.signal(signal.SIGHUP)
    both = {(version, netid) for _, netid in ALL for version in "12"}
    wait_until(lambda: apart.registered() == both, "the new version is registered, too", LONG)
    program.wait_logged("reloaded generation=1")
    (tmp_path / "second").unlink()
    program.signal(signal.SIGHUP)
    wait_until(lambda: apart.registered() == ALL, "the new version is no longer registered", LONG)
    program.wait_logged("reloaded generation=2")

    assert apart.registered() == ALL
    with subprocess.Popen(
        apart.command("sleep", "60")
    ) as keeper:  # the network outlives the program
        try:
            apart.pid = keeper.pid
            wait_until(lambda: apart.registered() == ALL, "it has arrived there", LONG)
            assert program.stop() == 0
            assert apart.registered() == set()
            assert "portmapper" in run(*apart.command("/usr/sbin/rpcinfo", "-p"))
        finally:
            keeper.kill()
    assert len(program.logged("taken back from rpcbind")) == 3


INSTRUMENT = """
    from tests.support.app import *
    import runpy, select
    log_to_stderr()
    tell("apart")
    while not os.path.exists("/run/rpcbind.sock"):
        select.select([], [], [], 0.01)
    sys.argv[1:] = []
    runpy.run_path(EXAMPLE, run_name="__main__")
"""

CLIENT = """
import pyvisa
manager = pyvisa.ResourceManager("@py")
meters = [manager.open_resource("TCPIP::127.0.0.1::INSTR", open_timeout=20000) for _ in range(3)]
for number, meter in enumerate(meters):
    print(meter.query("*IDN?").strip(), meter.query("MEAS:VOLT?").strip())
    meter.write(f"ECHO? {number} " + 200 * "x")
for number, meter in enumerate(meters):
    assert meter.read_stb() == 16
    assert meter.read().strip() == f"{number} " + 200 * "x"
    meter.write("ECHO? abc")
    meter.clear()
    assert meter.read_stb() == 0
    meter.assert_trigger()
    meter.close()
print("closed")
"""


def test_instrument_with_pyvisa(start_apart: Callable[[str], Apart]) -> None:
    """pyvisa-py finds the VXI-11 example by rpcbind, and its answers wait with the connection."""
    pytest.importorskip("pyvisa_py")
    apart = start_apart(INSTRUMENT.replace("EXAMPLE", repr(str(EXAMPLE / "instrument.py"))))
    apart.start_rpcbind()
    apart.program.wait_logged("registered with rpcbind")
    said = run(*apart.command(sys.executable, "-W", "ignore", "-c", CLIENT)).splitlines()
    assert said == ["prefork,multimeter,0,1 +1.23400E+00"] * 3 + ["closed"]
    assert not apart.program.logged("ERROR|Traceback")
    assert apart.program.stop() == 0
