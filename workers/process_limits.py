"""What the kernel allows the process of a worker: limits of ``setrlimit()``, niceness, choice of the OOM killer.

The master asks before it binds or forks whether each value can be set (``refuse_impossible()``), and
sets nothing for itself. Each worker sets the values for its own process (``ProcessLimits.apply()``)
after its fork, while it still has the privileges of the master, and before any code of the program
runs in it. Programs that a handler starts inherit the values.

A value can be refused by the kernel for reasons that no file shows: in a user namespace a process
seems to have every capability, and may still not raise a limit. So the question is put to the kernel.
The master sets the value and puts the previous one back at once. Only steps towards more are tried,
because each of them can be taken back by any process.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import msgspec

from prefork.workers.errors import SettingsError
from prefork.workers.units import shown_size, size

LimitName = Literal[
    "as",
    "core",
    "data",
    "fsize",
    "memlock",
    "msgqueue",
    "nofile",
    "nproc",
    "sigpending",
    "stack",
]
"""The limits of setrlimit() by their names, without RLIMIT_.

``cpu`` is not one of them: the kernel kills a process that has used up this limit, and a worker uses
CPU time for all requests of its life.
"""

UNLIMITED: Final = resource.RLIM_INFINITY
"""The number that stands for no limit. Python has -1 for it."""

COUNTS: Final = frozenset({"nofile", "nproc", "sigpending"})
"""The limits that count things; all others are bytes."""

LEAST_DESCRIPTORS: Final = 32
"""The smallest ``nofile``: a worker has some ten descriptors of its own, and more for each server."""

HIGHEST_ADJ: Final = 1000
"""The largest ``oom_score_adj`` that the kernel takes."""

_OOM_SCORE_ADJ: Final = "/proc/self/oom_score_adj"
_STATM: Final = "/proc/self/statm"


# --- reading and showing


def read_limits(raw: object) -> object:
    """Read ``nofile=1024 as=2G``, or a table of such values, as numbers by name (pure).

    The word ``unlimited`` stands for UNLIMITED. Anything that is neither text nor a table is returned
    as it is. ValueError: the text is no list of such pairs.
    """
    if isinstance(raw, str):
        pairs = [word.partition("=") for word in raw.replace(",", " ").split()]
        given: dict[str, object] = {name.lower(): value for name, _, value in pairs}
        if len(given) < len(pairs):
            raise ValueError(raw)
        return {name: _read_value(value) for name, value in given.items()}
    if isinstance(raw, Mapping):
        return {name: _read_value(value) for name, value in raw.items()}
    return raw


def _read_value(raw: object) -> object:
    return UNLIMITED if raw == "unlimited" else size(raw)


def shown_limits(limits: Mapping[str, int]) -> str:
    """Return limits as text that reads as the same limits (pure)."""
    return " ".join(f"{name}={_shown(name, limits[name])}" for name in sorted(limits))


def _shown(name: str, value: int) -> str:
    if value == UNLIMITED:
        return "unlimited"
    return str(value) if name in COUNTS else shown_size(value)


# --- whether they can be set (master)


def refuse_impossible(values: Mapping[str, Any], origin: Callable[[str], str]) -> None:
    """Raise SettingsError for the first value that a worker could not set for itself.

    values: the settings by key; a key that is missing or None is passed over. origin: returns the
    words for where the value of a key came from.
    """
    for name, value in (values.get("limits") or {}).items():
        if reason := _why_not(name, value):
            raise SettingsError("limits", f"{name}={_shown(name, value)}", origin("limits"), reason)
    nice = values.get("nice")
    if nice is not None and not _may_be_nice(nice):
        raise SettingsError("nice", nice, origin("nice"), _needs("CAP_SYS_NICE", _niceness()))
    adj, own = values.get("oom_score_adj"), _oom_score_adj()
    if adj is not None and adj < own:
        reason = (
            f"at least {own}, which this process has; with less, the kernel would kill the master "
            "before its workers"
        )
        raise SettingsError("oom_score_adj", adj, origin("oom_score_adj"), reason)


def _why_not(name: str, value: int) -> str:
    """Return why a worker cannot have this limit, with a remedy; "" if it can."""
    if name == "nofile" and 0 <= value < LEAST_DESCRIPTORS:
        return f"nofile of at least {LEAST_DESCRIPTORS}; a worker needs some descriptors for itself"
    if name == "as" and 0 <= value < (has := _address_space()):
        return (
            f"an address space of more than {shown_size(has >> 20 << 20)}, which this process has "
            "already and a worker begins with; give more, or load less before the fork"
        )
    hard = resource.getrlimit(_number(name))[1]
    if _may_be_raised(name, value):
        return ""
    return (
        f"{name} of at most {_shown(name, hard)}, the hard limit of this process; raise that where the "
        "process is started (ulimit -H, LimitXXX= of systemd, --ulimit of a container), or start it "
        "with CAP_SYS_RESOURCE"
    )


def _may_be_raised(name: str, value: int) -> bool:
    number = _number(name)
    soft, hard = resource.getrlimit(number)
    if hard == UNLIMITED or 0 <= value <= hard:
        return True
    try:
        resource.setrlimit(number, (soft, value))
    except (ValueError, OSError):  # Python's word for EPERM is ValueError
        return False
    resource.setrlimit(number, (soft, hard))
    return True


def _may_be_nice(value: int) -> bool:
    before = _niceness()
    if value >= before:
        return True
    try:
        os.setpriority(os.PRIO_PROCESS, 0, value)
    except OSError:
        return False
    os.setpriority(os.PRIO_PROCESS, 0, before)
    return True


def _needs(capability: str, now: int) -> str:
    return (
        f"at least {now}, the niceness of this process; start it with {capability} (as root, or by "
        "AmbientCapabilities= of systemd), or give it the lower niceness"
    )


def _niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, 0)


def _oom_score_adj() -> int:
    try:
        with open(_OOM_SCORE_ADJ, "rb") as file:
            return int(file.read())
    except (OSError, ValueError):  # /proc is not mounted, or not as Linux mounts it
        return -HIGHEST_ADJ


def _address_space() -> int:
    try:
        with open(_STATM, encoding="ascii") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return 0


def _number(name: str) -> int:
    number: int = getattr(resource, f"RLIMIT_{name.upper()}")
    return number


# --- setting them (worker)


class ProcessLimits(msgspec.Struct, frozen=True):
    """What a worker sets for its process. limits: by name, each for the soft and the hard limit."""

    limits: Mapping[LimitName, int]
    nice: int | None
    oom_score_adj: int | None

    def apply(self) -> None:
        """Set the values for this process, for good (worker, with the privileges of the master).

        Raises OSError or ValueError where the kernel refuses one, which ``refuse_impossible()`` has
        found to be possible in the master: the worker cannot boot then.
        """
        # Once the worker has another user, the file in /proc belongs to root.
        if self.oom_score_adj is not None:
            with open(_OOM_SCORE_ADJ, "w", encoding="ascii") as file:
                file.write(str(self.oom_score_adj))
        if self.nice is not None:
            os.setpriority(os.PRIO_PROCESS, 0, self.nice)
        for name, value in self.limits.items():
            resource.setrlimit(_number(name), (value, value))
