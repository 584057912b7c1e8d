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
from socketserver import BaseServer
from types import FunctionType, MethodType
from typing import Final

from prefork.workers.errors import MisuseError, SettingsError
from prefork.workers.settings import ROWS
from prefork.workers.text import nearest

SETTINGS: Final = {row.attribute: row for row in ROWS.values() if row.attribute is not None}
"""The settings that a class may have, by the name of the attribute."""

ELSEWHERE: Final = {
    "metrics": "metrics_address",
    "agent": "agent_address",
    "backlog": "request_queue_size",
}
"""Keys of prefork.toml that have another name as an attribute, and that name."""

HOOKS: Final[Mapping[str, tuple[str, ...]]] = {
    "when_ready": (),
    "pre_fork": ("worker",),
    "worker_init": ("worker",),
    "worker_ready": ("worker",),
    "worker_exit": ("worker", "cause"),
    "worker_died": ("worker", "cause"),
    "pool_resized": ("old", "new", "why"),
    "on_reload": (),
    "on_exit": (),
    "shed_request": ("request", "client_address"),
    "request_cancelled": ("request", "client_address", "reason"),
}
"""The methods that a class may override and the pool calls, and the arguments that each one gets."""

LIKE: Final = 0.88
"""How like the name of a setting or hook another one must be: one letter of ten is wrong or missing."""

_VARARGS: Final = 0x04
"""The flag of a code object whose function has ``*args`` (inspect.CO_VARARGS; to import inspect takes long)."""


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
    raise MisuseError(
        f"class {cls.__name__}: {mixin.__name__} has no effect behind {first.__name__}, whose methods "
        f"come first; {_right_order(cls, mixin)}"
    )


def _right_order(cls: type, mixin: type) -> str:
    """Return what to write in place of a class in the wrong order.

    A base that has the mix-in already, such as a ready-made server, comes first. Another server class may follow.
    A mix-in of the standard library may not: it would stand behind the server class that it is to change.
    """
    whole = [base for base in cls.__bases__ if issubclass(base, mixin) and base is not mixin]
    others = [base for base in cls.__bases__ if not issubclass(base, mixin)]
    if whole and not all(issubclass(base, BaseServer) for base in others):
        extra = ", ".join(base.__name__ for base in others if not issubclass(base, BaseServer))
        return f"leave {extra} out: the workers of {whole[0].__name__} are processes already"
    bases = whole + others if whole else [mixin, *others]
    return f"write class {cls.__name__}({', '.join(base.__name__ for base in bases)})"


def refuse_wrong_hooks(cls: type, mixin: type) -> None:
    """Raise MisuseError for the first method of a class that is meant as a hook and cannot be one.

    Hooks of all base classes are looked at, because a base class without the mix-in was not looked at
    before. A method with nearly the name of a hook is refused only if it takes the hook's arguments.
    """
    for name in HOOKS:
        base = next(base for base in cls.__mro__ if name in vars(base))
        if base is not mixin:
            _refuse_wrong_hook(cls, name, vars(base)[name], bound=False)
    for name, value in vars(cls).items():
        if isinstance(value, FunctionType) and not name.startswith("_"):
            _refuse_near_hook(cls, name, value)


def refuse_wrong_hooks_of(server: object) -> None:
    """Raise MisuseError for the first hook that a server object has of its own and that the pool could not call."""
    for name in HOOKS.keys() & vars(server).keys():
        _refuse_wrong_hook(type(server), name, vars(server)[name], bound=True)


def _refuse_wrong_hook(cls: type, name: str, value: object, *, bound: bool) -> None:
    """Raise MisuseError if the pool could not call a hook.

    A call with a wrong number of arguments would otherwise fail much later: ``worker_init()`` in each new
    worker, ``worker_died()`` when the first worker dies.

    value: what the class has under this name, or with ``bound`` what a server object has. Callables that do
    not say what they take, such as those of C, are accepted.
    """
    given = HOOKS[name]
    function, has_self = _function_of(value, bound=bound)
    if function is None or _takes(function, len(given) + has_self):
        return
    code = function.__code__
    own = ", ".join(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
    wanted = ", ".join(["self"] * has_self + list(given))
    raise MisuseError(
        f"class {cls.__name__}: the hook {name}({own}) cannot be called with the arguments that it gets; "
        f"write def {name}({wanted})"
    )


def _refuse_near_hook(cls: type, name: str, method: FunctionType) -> None:
    """Raise MisuseError for a method of the program's own that is probably a misspelt hook."""
    if any(hasattr(base, name) for base in cls.__mro__[1:]):
        return
    meant = nearest(name.lower(), list(HOOKS), cutoff=LIKE)
    if meant is not None and meant != name and _takes(method, 1 + len(HOOKS[meant])):
        raise MisuseError(
            f"class {cls.__name__}: there is no hook {name}(); did you mean {meant}()?"
        )


def _function_of(value: object, *, bound: bool) -> tuple[FunctionType | None, bool]:
    """Return the function of an attribute, None if there is no such, and whether a call adds ``self`` or ``cls``."""
    has_self = not bound and not isinstance(value, staticmethod)
    if isinstance(value, (staticmethod, classmethod, MethodType)):
        has_self = has_self or isinstance(value, MethodType)
        value = value.__func__
    return (value if isinstance(value, FunctionType) else None), has_self


def _takes(function: FunctionType, count: int) -> bool:
    """Return whether a function can be called with this many positional arguments."""
    code = function.__code__
    needed = code.co_argcount - len(function.__defaults__ or ())
    named_only = code.co_kwonlyargcount - len(function.__kwdefaults__ or ())
    takes_more = bool(code.co_flags & _VARARGS) or count <= code.co_argcount
    return needed <= count and takes_more and not named_only


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
