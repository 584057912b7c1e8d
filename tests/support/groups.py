"""Control groups that bound or freeze processes of a test, where this machine lets one make them."""

from __future__ import annotations

import contextlib
import os
import signal
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_MOUNT = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Switch:
    """A file of a group that does what a test wants, and the words for it."""

    hierarchy: str
    name: str
    on: str
    off: str


FREEZE = (
    Switch("freezer", "freezer.state", "FROZEN", "THAWED"),
    Switch("unified", "cgroup.freeze", "1", "0"),
    Switch("", "cgroup.freeze", "1", "0"),
)
NO_MORE_PROCESSES = (Switch("pids", "pids.max", "0", "max"), Switch("", "pids.max", "0", "max"))


class Group:
    """A group with one switch, thrown by ``turn_on()`` and ``turn_off()``."""

    def __init__(self, directory: Path, switch: Switch) -> None:
        self._directory = directory
        self._switch = switch

    def put(self, pids: Iterable[int]) -> None:
        """Put processes into it; those they fork from then on are in it, too."""
        for pid in pids:
            (self._directory / "cgroup.procs").write_text(str(pid))

    def turn_on(self) -> None:
        """Have the kernel do it."""
        (self._directory / self._switch.name).write_text(self._switch.on)

    def turn_off(self) -> None:
        """Have the kernel undo it."""
        (self._directory / self._switch.name).write_text(self._switch.off)

    def is_empty(self) -> bool:
        """Whether nobody is left in it; whoever is gets killed."""
        pids = (self._directory / "cgroup.procs").read_text().split()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        return not pids


def why_no_group(*switches: Switch) -> str:
    """Why no group with one of these switches can be made here; "" when one can."""
    try:
        with group_with(*switches):
            return ""
    except OSError as error:
        return f"no control group for it here: {error}"


@contextmanager
def group_with(*switches: Switch) -> Iterator[Group]:
    """Make a group with the first of these switches that there is; OSError where there is none."""
    directory, switch = _made(switches)
    group = Group(directory, switch)
    try:
        yield group
    finally:
        group.turn_off()
        wait_until(group.is_empty, "the group is empty")
        directory.rmdir()


def _made(switches: Iterable[Switch]) -> tuple[Path, Switch]:
    for switch in switches:
        directory = _MOUNT / switch.hierarchy / f"prefork-test-{os.getpid()}"
        with contextlib.suppress(OSError):
            directory.mkdir()
            if (directory / switch.name).exists():
                return directory, switch
            directory.rmdir()
    raise OSError("none of the hierarchies has it")
