"""restore_process: what a request changes in its process does not meet the next client."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.clients import ask, ask_datagram, hangs_up
from tests.support.server import serving

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.server import Program

LOOK = (
    "(os.getcwd(), os.umask(0o22), sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),"
    " [signal.getitimer(one)[0] > 0 for one in range(3)])"
)

CHANGES = {
    "alarm": "signal.alarm(1000)",
    "timers": "[signal.setitimer(one, 1000) for one in range(3)]",
    "signal mask": "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGALRM])",
    "working directory": "os.chdir('/')",
    "umask": "os.umask(0o77)",
    "failed": "[os.chdir('/'), os.umask(0o77), 1 / 0]",
}


@pytest.mark.parametrize("log", ["off", "text"])
@pytest.mark.parametrize("change", CHANGES)
def test_state_of_the_process_is_put_back(
    start: Callable[..., Program], change: str, log: str
) -> None:
    """The next request of the same process finds the same state as the previous one, also after one that failed."""
    program = start(serving("Run", workers=1, restore_process=True, access_log=log))
    address = program.address()
    ask(address, "os.umask(0o22)")
    before = ask(address, LOOK)
    hangs_up(address, CHANGES[change])
    assert ask(address, LOOK) == before


def test_state_is_that_which_worker_init_has_left(start: Callable[..., Program]) -> None:
    """A directory and a timer that worker_init() has chosen stay."""
    program = start("""
        from tests.support.app import *
        def worker_init(self, worker):
            os.chdir("/usr")
            signal.setitimer(signal.ITIMER_PROF, 1000)
        serve(Run, workers=1, restore_process=True, worker_init=worker_init)
    """)
    address = program.address()
    ask(address, "os.chdir('/')")
    assert ask(address, "os.getcwd()").endswith("'/usr'")
    assert ask(address, "signal.getitimer(signal.ITIMER_PROF)[0] > 0").endswith("True")


def test_state_is_put_back_between_datagrams(start: Callable[..., Program]) -> None:
    """Queued datagrams are not served in rounds then."""
    program = start("""
        from tests.support.app import *
        import prefork
        class Handler(EchoDatagram):
            def handle(self):
                self.wfile.write(os.getcwd().encode())
                os.chdir("/")
        serve(Handler, prefork.PreForkingUDPServer, workers=1, restore_process=True)
    """)
    address = program.address()
    first = ask_datagram(address)
    assert first != "/"
    assert ask_datagram(address) == first


def test_setting_that_is_off_leaves_everything(start: Callable[..., Program]) -> None:
    """Without the setting nothing is put back, as with the servers of the standard library."""
    program = start(serving("Run", workers=1))
    address = program.address()
    ask(address, "os.chdir('/')")
    assert ask(address, "os.getcwd()").endswith("'/'")
