"""Reports: what a worker writes of itself stays within bounds, and is shown without what could harm."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
from typing import TYPE_CHECKING

import pytest

from prefork.workers import reports
from prefork.workers.reports import REPORT_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(name="report")
def _report() -> Iterator[int]:
    """Give an empty report."""
    fd = reports.create("prefork-report-1-0")
    yield fd
    os.close(fd)


@contextlib.contextmanager
def file_size_limit(length: int) -> Iterator[None]:
    """Allow this process no longer files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (length, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_is_written_is_read(report: int) -> None:
    """Writes follow each other from the beginning, and reading does not move where the next one goes."""
    os.write(report, b"one")
    assert reports.read(report) == "one"
    os.write(report, b" more")
    assert reports.read(report) == "one more"


def test_report_is_bounded(report: int) -> None:
    """What does not fit is cut by the kernel, wherever it is written, and the size cannot be changed."""
    written = [os.write(report, b"x" * 5000) for _ in range(REPORT_BYTES // 5000 + 1)]
    assert sum(written) == REPORT_BYTES
    assert reports.read(report) == "x" * REPORT_BYTES
    with pytest.raises(PermissionError):
        os.write(report, b"x")
    with pytest.raises(PermissionError):
        os.pwrite(report, b"x", REPORT_BYTES)
    for size in (0, REPORT_BYTES + 1):
        with pytest.raises(PermissionError):
            os.ftruncate(report, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(report, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    assert os.fstat(report).st_size == REPORT_BYTES


@pytest.mark.parametrize("length", [0, 1, 5000, REPORT_BYTES])
def test_cleared_report_begins_anew(report: int, length: int) -> None:
    """Of a report that was cleared nothing is left, and the next write, of whoever has it, goes to its beginning."""
    worker = os.dup(report)
    try:
        os.write(worker, b"x" * length)
        reports.clear(report)
        assert reports.read(report) == ""
        assert os.fstat(report).st_blocks == 0
        os.write(worker, b"new")
        assert reports.read(report) == "new"
    finally:
        os.close(worker)


def test_report_is_cleared_whatever_its_worker_has_done(report: int) -> None:
    """Neither a flag that the worker has set, which is the master's, too, nor where it wrote keeps it from that."""
    os.write(report, b"old")
    os.pwrite(report, b"older", REPORT_BYTES // 2)
    fcntl.fcntl(report, fcntl.F_SETFL, os.O_RDWR | os.O_APPEND)
    reports.clear(report)
    assert reports.read(report) == ""
    assert os.fstat(report).st_blocks == 0


@pytest.mark.parametrize("position", [REPORT_BYTES + 1, 2**62])
def test_position_of_a_worker_s_making_is_no_harm(report: int, position: int) -> None:
    """A worker that has moved the position anywhere harms neither the master's clearing nor its reading."""
    os.lseek(report, position, os.SEEK_SET)
    reports.clear(report)
    os.write(report, b"new")
    assert reports.read(report) == "new"


def test_report_is_cleared_where_holes_are_refused(
    report: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A filter of system calls that knows no fallocate() leaves nothing of the last dump."""
    monkeypatch.setattr(reports.system, "punch_hole", lambda _fd, _length: False)
    os.write(report, b"old" * 2000)
    reports.clear(report)
    os.write(report, b"new")
    assert reports.read(report) == "new"


def test_report_is_not_inherited_and_costs_nothing_empty(report: int) -> None:
    """A program that a handler starts does not get it; memory is taken with the first write only."""
    assert not os.get_inheritable(report)
    assert os.fstat(report).st_blocks == 0


def test_name_says_whose_it_is(report: int) -> None:
    """What /proc shows tells pool and slot apart, also of two pools in one process."""
    names = {reports.name_of(fd, slot) for fd in (report, 0) for slot in (0, 1)}
    assert len(names) == 4
    assert os.readlink(f"/proc/self/fd/{report}") == "/memfd:prefork-report-1-0 (deleted)"


def test_limit_on_the_size_of_files_costs_the_report_only() -> None:
    """Where files may not be so long there is a descriptor all the same: what is written is lost."""
    with file_size_limit(REPORT_BYTES - 1):
        fd = reports.create("prefork-report-1-0")
    try:
        os.write(fd, b"lost")
        assert reports.read(fd) == ""
        reports.clear(fd)
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


def test_report_is_cleared_under_a_limit_on_the_size_of_files(report: int) -> None:
    """A limit that came after the first dump is none on emptying it."""
    os.write(report, b"old")
    with file_size_limit(0):
        reports.clear(report)
    assert reports.read(report) == ""


def test_bad_bytes_are_text(report: int) -> None:
    """Bytes that are no UTF-8 are replaced, and the text ends at the first zero."""
    os.write(report, b"a\xff\xfeb\0rest")
    assert reports.read(report) == "a\ufffd\ufffdb"


# --- how it is shown


def test_dump_is_cut_below_the_worker_and_escaped() -> None:
    """The frames of the program that forked it say nothing; every thread keeps its own; no byte steers a terminal."""
    report = (
        "Thread 0x01 (most recent call first):\n"
        '  File "queue.py", line 1 in get\n'
        '  File "threading.py", line 2 in run\n'
        "\n"
        "Current thread 0x02 (most recent call first):\n"
        '  File "/lib/prefork/workers/worker/life.py", line 301 in write_stacks\n'
        '  File "app\x1b.py", line 7 in handle\n'
        '  File "/lib/prefork/workers/worker/life.py", line 153 in run_worker\n'
        '  File "pool.py", line 8 in _fork\n'
        "Thread 0x03 (most recent call first):\n"
        '  File "late.py", line 1 in late\n'
    )
    assert reports.shown(report).splitlines() == [
        "Thread 0x01 (most recent call first):",
        '  File "queue.py", line 1 in get',
        '  File "threading.py", line 2 in run',
        "",
        "Current thread 0x02 (most recent call first):",
        r'  File "app\x1b.py", line 7 in handle',
        '  File "/lib/prefork/workers/worker/life.py", line 153 in run_worker',
        "Thread 0x03 (most recent call first):",
        '  File "late.py", line 1 in late',
    ]


def test_functions_of_the_application_are_not_taken_for_ours() -> None:
    """A function that is called as one of ours, in another file, is shown, and what is below it."""
    report = (
        "Current thread 0x02 (most recent call first):\n"
        '  File "app.py", line 7 in write_stacks\n'
        '  File "app.py", line 9 in run_worker\n'
        '  File "/srv/shop/workers/worker/life.py", line 11 in run_worker\n'
        '  File "app.py", line 13 in handle'
    )
    assert reports.shown(report) == report


def test_fragment_of_a_dump_is_cut_as_well() -> None:
    """What was written while the report was cleared begins anywhere."""
    report = (
        '", line 5 in deep\n'
        '  File "/lib/prefork/workers/worker/life.py", line 301 in write_stacks\n'
        '  File "/lib/prefork/workers/worker/life.py", line 153 in run_worker\n'
        '  File "pool.py", line 8 in _fork\n'
    )
    assert reports.shown(report).splitlines() == [
        '", line 5 in deep',
        '  File "/lib/prefork/workers/worker/life.py", line 153 in run_worker',
    ]


def test_traceback_of_a_boot_stays_whole() -> None:
    """Last words are a traceback, whose last line says what it was."""
    words = (
        "Traceback (most recent call last):\n"
        '  File "/lib/prefork/workers/worker/life.py", line 153, in run_worker\n'
        "    spec.hooks()\n"
        '  File "app.py", line 7, in worker_init\n'
        "    raise ValueError\n"
        "ValueError: no database"
    )
    assert reports.shown(words) == words
