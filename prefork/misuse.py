"""Notice a server class that does not do what its author meant.

Python accepts any class body. A misspelt setting would be an attribute that is never read, and a
mix-in behind the server class would be one whose methods are never called: the program would serve,
with one process or with default settings, and say nothing. So each class is looked at when it is
made, and each server object when it begins to serve.

A class of a program has attributes of its own, too. Only a plain value under a public name is
compared with the names of settings, and only a name that no base class has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from prefork.workers.errors import MisuseError, SettingsError
from prefork.workers.settings import ROWS
from prefork.workers.text import nearest

SETTINGS: Final = {row.attribute: row for row in ROWS.values() if row.attribute is not None}
"""The settings that a class may have, by the name of the attribute."""

ELSEWHERE: Final = {"metrics": "metrics_address", "backlog": "request_queue_size"}
"""Keys of prefork.toml that have another name as an attribute, and that name."""

HOOKS: Final = frozenset(
    {
        *("when_ready", "pre_fork", "worker_init", "worker_ready", "worker_exit", "worker_died"),
        *("pool_resized", "on_reload", "on_exit"),
    }
)

LIKE: Final = 0.88
"""How like a setting's name another one must be: one letter of ten is wrong or missing."""


def refuse_wrong_order(cls: type, mixin: type) -> None:
    """Raise MisuseError for a class in which the standard library's methods hide those of the mix-in."""
    before = cls.__mro__[: cls.__mro__.index(mixin)]
    hiding = ("serve_forever", "collect_children")
    if not any(
        base.__module__ == "socketserver" and any(name in vars(base) for name in hiding)
        for base in before
    ):
        return
    first = next(base for base in cls.__bases__ if not issubclass(base, mixin))
    bases = [mixin.__name__, *(base.__name__ for base in cls.__bases__ if base is not mixin)]
    raise MisuseError(
        f"class {cls.__name__}: {mixin.__name__} has no effect behind {first.__name__}, whose methods "
        f"come first; write class {cls.__name__}({', '.join(bases)})"
    )


def refuse_misspelt(cls: type, values: Mapping[str, object]) -> None:
    """Raise SettingsError for the first attribute that cannot be what its author meant.

    cls: a class with the mix-in. values: the attributes of its own that it has, or those of an object
    of it.
    """
    for name, value in values.items():
        if not name.startswith("_"):
            _refuse(cls, name, value)


def _refuse(cls: type, name: str, value: object) -> None:
    if reason := _why_wrong(cls, name, value):
        raise SettingsError(name, value, f"attribute {cls.__name__}.{name}", reason)


def _why_wrong(cls: type, name: str, value: object) -> str:
    """Return why an attribute cannot be meant so, "" where it can."""
    is_method = callable(value) or isinstance(value, (classmethod, staticmethod))
    if name in SETTINGS:
        return f"{SETTINGS[name].about.allowed}; this is a method" if is_method else ""
    if is_method or hasattr(value, "__get__"):
        return ""
    if name in HOOKS:
        return "this name is a hook's, which is a method; choose another name"
    if name in ("worker", "stopping"):
        return (
            f"handlers read {name} from the server{'; did you mean workers?' * (name == 'worker')}"
        )
    if any(name in vars(base) for base in cls.__mro__[1:]):
        return ""
    guess = _guess(name, value)
    return f"there is no such setting; did you mean {guess}?" if guess else ""


def _guess(name: str, value: object) -> str | None:
    if value is not None and not isinstance(value, (int, float, str)):
        return None
    return ELSEWHERE.get(name) or nearest(name.lower(), list(SETTINGS), cutoff=LIKE)
