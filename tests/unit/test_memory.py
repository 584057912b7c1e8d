"""What a worker's memory is made of, from invented lists of the kernel."""

from __future__ import annotations

import os

import pytest

from prefork.inspect.memory import (
    Mapping,
    Use,
    children_of,
    cost_of_one_more,
    mappings_in,
    read,
    use_of,
)

KB = 1024

SMAPS = """\
55d0c0000000-55d0c0021000 rw-p 00000000 00:00 0                          [heap]
Size:                132 kB
Rss:                  40 kB
Shared_Clean:          4 kB
Shared_Dirty:          8 kB
Private_Clean:        12 kB
Private_Dirty:        16 kB
Anonymous:            28 kB
VmFlags: rd wr mr mw me ac
7f0000000000-7f0000001000 r-xp 00002000 08:01 4711                       /usr/lib/a name.so
Shared_Clean:          4 kB
Private_Dirty:         0 kB
7f1000000000-7f1000001000 rw-p 00000000 00:00 0
Private_Dirty:         4 kB
"""


def test_list_of_the_kernel_is_read() -> None:
    """Addresses, path, and the sums of shared and private bytes of each mapping are read, and lines of other kinds skipped."""
    assert [*mappings_in(SMAPS)] == [
        Mapping(0x55D0C0000000, 0x55D0C0021000, "[heap]", 12 * KB, 28 * KB),
        Mapping(0x7F0000000000, 0x7F0000001000, "/usr/lib/a name.so", 4 * KB, 0),
        Mapping(0x7F1000000000, 0x7F1000001000, "", 0, 4 * KB),
    ]
    assert [*mappings_in("")] == []


MASTER = [Mapping(100, 200, "[heap]"), Mapping(1000, 2000, "/lib/before.so")]


@pytest.mark.parametrize(
    ("mapping", "kind"),
    [
        (Mapping(100, 200, "[heap]", private=50), "copied"),
        (Mapping(1000, 2000, "/lib/before.so", private=50), "copied"),
        (Mapping(1500, 2000, "/lib/before.so", private=50), "copied"),
        (Mapping(100, 900, "[heap]", private=50), "allocated"),
        (Mapping(5000, 6000, "", private=50), "allocated"),
        (Mapping(5000, 6000, "/memfd:x (deleted)", private=50), "allocated"),
        (Mapping(5000, 6000, "/lib/late.so", private=50), "mapped"),
    ],
)
def test_private_bytes_have_a_reason(mapping: Mapping, kind: str) -> None:
    """Private bytes are copied where the master has the range, allocated where there is a new one or growth, mapped for a new file."""
    use = use_of(3, 4711, [mapping], MASTER)
    found = {"copied": use.copied, "allocated": use.allocated, "mapped": use.mapped}
    assert found == {**dict.fromkeys(found, 0), kind: 50}
    assert use.private == 50
    assert use.late == (("late.so",) if kind == "mapped" else ())


def test_heap_that_has_grown_is_divided() -> None:
    """Of a range that has grown, as much as the growth is allocated, and the rest copied."""
    use = use_of(0, 1, [Mapping(100, 230, "[heap]", shared=7, private=50)], MASTER)
    assert (use.copied, use.allocated, use.shared) == (20, 30, 7)


def test_one_more_worker_costs_what_the_others_do() -> None:
    """The middle one of the workers stands for the next one."""
    uses = [Use(n, n, 0, private, 0, 0, ()) for n, private in enumerate((900, 10, 20))]
    assert cost_of_one_more(uses) == 20
    assert cost_of_one_more([]) == 0


def test_words_of_a_worker_are_bounded() -> None:
    """What a worker says of itself may be untrue, and is never more than its private bytes, nor less than nothing."""
    use = Use(0, 1, 0, 10, 20, 0, ())
    assert (use.as_said(7, 3).kept, use.as_said(7, 3).modules) == (7, 3)
    assert use.as_said(2**62, 2**62).kept == 30
    assert (use.as_said(-5, -5).kept, use.as_said(-5, -5).modules) == (0, 0)


def test_only_children_are_found() -> None:
    """The children of a process are those that the kernel lists, and a process that has ended has none to be found."""
    assert os.getpid() in children_of(os.getppid()).values()
    assert os.getppid() not in children_of(os.getpid())
    with pytest.raises(OSError, match="No such file"):
        children_of(2**22 + 1)


def test_this_process_can_be_read() -> None:
    """The real list of a process adds up to some memory."""
    assert sum(one.private + one.shared for one in read(os.getpid())) > 2**20
