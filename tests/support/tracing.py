"""Faults of the kernel's making: strace delays or fails the system calls of one process."""

from __future__ import annotations

import shutil
import signal
import subprocess
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from tests.support.processes import is_alive, status_of
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FORKS = "clone,clone3,fork,vfork"


@cache
def why_no_strace() -> str:
    """Why faults cannot be injected here; "" when they can."""
    strace = shutil.which("strace")
    if strace is None:
        return "strace is not installed"
    command = [strace, "-qq", "-e", "trace=none", "-e", "inject=getppid:error=EPERM", "true"]
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"strace cannot trace here: {tried.stderr.strip()}" if tried.returncode else ""


@contextmanager
def injected(pid: int, *faults: str, log: Path) -> Iterator[None]:
    """Let the kernel misbehave for one process (not for its children) until the block ends.

    faults: strace's own words, such as "clone,fork:error=EAGAIN" or "accept4:delay_exit=300000".
    """
    calls = ",".join(fault.partition(":")[0] for fault in faults)
    command = ["strace", "-qq", "-p", str(pid), "-o", str(log), "-e", f"trace={calls}"]
    for fault in faults:
        command += ["-e", f"inject={fault}"]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: _is_traced(pid, by=tracer), f"strace attached to {pid}: {command}")
        yield
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.communicate()


def _is_traced(pid: int, *, by: subprocess.Popen[str]) -> bool:
    if by.poll() is not None:
        raise AssertionError(f"strace ended: {by.stderr and by.stderr.read()}")
    return is_alive(pid) and status_of(pid)["TracerPid"] == str(by.pid)
