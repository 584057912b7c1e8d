"""Import what the TARGET of the command line names: ``module:attribute`` or ``file.py:attribute``."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from socketserver import BaseRequestHandler, BaseServer
from types import ModuleType
from typing import Final

from prefork.cli.application_errors import application_errors, frames_of_application
from prefork.mixin import PreForkingMixIn
from prefork.workers.errors import TargetError
from prefork.workers.text import nearest

_MODULE_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_CALL: Final = re.compile(r"(.+?:[\w.]+)\(\s*(.*?)\s*\)")
"""A function and its arguments, which is how gunicorn's users name a factory."""


def load(target: str) -> object:
    """Return the object that TARGET names. The working directory comes first on ``sys.path``.

    TargetError: TARGET names no module, file or attribute. BootError: the application raised while
    it was imported; the report is the traceback from the application's first frame on. BindError:
    the application made a server whose address cannot be bound.
    """
    if ":" not in target:
        return _application_in(target)
    if called := _CALL.fullmatch(target):
        raise TargetError(target, _not_called(*called.groups()))
    place, colon, path = target.rpartition(":")
    if not colon or not place or not path:
        raise TargetError(target, _malformed(target))
    _put_first_on_path(target, Path.cwd)
    found: object = _module(target, place)
    for name in path.split("."):
        found = _attribute(target, found, name)
    return found


APPLICATIONS: Final = ("application", "app")
"""The names under which a module has its WSGI application, where TARGET names the module alone."""


def _application_in(target: str) -> object:
    """Return the WSGI application of a module or file that is named without an attribute."""
    if not (target.endswith(".py") or _MODULE_NAME.fullmatch(target)):
        raise TargetError(target, _malformed(target))
    _put_first_on_path(target, Path.cwd)
    module = _module(target, target)
    for name in APPLICATIONS:
        if callable(found := getattr(module, name, None)):
            return found
    missing = f"{target} has neither {' nor '.join(APPLICATIONS)}; write {target}:ATTRIBUTE"
    raise TargetError(target, f"{missing}{_servable_in(module)}")


def _not_called(function: str, arguments: str) -> str:
    """Return what to write in place of the call of a factory."""
    said = f"the form for a factory is --factory {function}, or factory = true in a file"
    if arguments:
        said += "; the function is called without arguments, so give each of them a default"
    return said


def _malformed(target: str) -> str:
    place = target.strip(":")
    if place and (place.endswith(".py") or ":" not in target):
        return f"no attribute is named; write {place}:ATTRIBUTE"
    return "the form is module:attribute or file.py:attribute"


def _put_first_on_path(target: str, directory: Callable[[], Path]) -> None:
    try:
        first = str(directory())
    except OSError as error:
        reason = f"the working directory does not exist ({error.strerror}); change to another one"
        raise TargetError(target, reason) from None
    if sys.path[:1] != [first]:
        sys.path.insert(0, first)


def _module(target: str, place: str) -> ModuleType:
    with application_errors(f"{place} cannot be imported"):
        if place.endswith(".py") or os.sep in place:
            return _module_of_file(target, Path(place))
        if not _MODULE_NAME.fullmatch(place):
            raise TargetError(target, f"{place!r} is not a module name, such as package.module")
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{place}.".startswith(f"{error.name}."):
                raise  # the application imports a module that does not exist
            if frames_of_application(error):
                raise
            raise TargetError(target, _no_module(error.name)) from None


def _module_of_file(target: str, path: Path) -> ModuleType:
    """Import a file as a module.

    Its own folder comes first on ``sys.path``, as with ``python file.py``.

    The module is called as the file is. If a module of this name is loaded already, it stays: a
    target ``logging.py`` must not replace the standard library's ``logging``.
    """
    if not path.is_file():
        raise TargetError(target, f"there is no file {path}")
    _put_first_on_path(target, path.resolve().parent.absolute)
    name = path.stem if path.stem not in sys.modules else f"{path.stem}__target"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise TargetError(target, f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before the module runs, as the import statement does
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _no_module(name: str) -> str:
    neighbours = [path.stem for path in Path.cwd().glob("*.py")]
    guess = nearest(name, neighbours)
    return f"there is no module {name}" + (f"; did you mean {guess}?" if guess else "")


def _attribute(target: str, holder: object, name: str) -> object:
    try:
        return getattr(holder, name)
    except AttributeError:
        where = getattr(holder, "__name__", type(holder).__name__)
        raise TargetError(target, f"{where} has no {name}{_hint(holder, name)}") from None


def _hint(holder: object, name: str) -> str:
    guess = nearest(name, dir(holder))
    if guess is not None:
        return f"; did you mean {guess}?"
    return _servable_in(holder)


def _servable_in(holder: object) -> str:
    """Return the names of what can be served in a module, as the end of a sentence; "" for none."""
    own = getattr(holder, "__name__", None)
    servable = [
        key
        for key, value in vars(holder).items()
        if _is_servable(value) and getattr(value, "__module__", own) == own
    ]
    return f"; it has {', '.join(servable)}" if servable else ""


def _is_servable(value: object) -> bool:
    if isinstance(value, type):
        return issubclass(value, (BaseRequestHandler, BaseServer))
    return isinstance(value, PreForkingMixIn)
