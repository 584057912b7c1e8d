"""Targets: what can be loaded, and what the error says where a target names nothing."""

from __future__ import annotations

import socket
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

from prefork.cli.target import load
from prefork.workers.errors import BindError, BootError, TargetError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """``write(name, source)`` puts a module into the working directory; imports are undone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)

    def write_module(name: str, source: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))

    yield write_module
    for name in set(sys.modules) - before:
        del sys.modules[name]
    sys.path_importer_cache.clear()


def refusal(target: str) -> str:
    """Return the reason for which a target is refused."""
    with pytest.raises(TargetError) as caught:
        load(target)
    assert caught.value.target == target
    assert repr(target) in str(caught.value)
    return caught.value.reason


def test_module_in_the_working_directory(write: Callable[..., None]) -> None:
    """The working directory comes first on the path, as with gunicorn."""
    write("app_here.py", "class Up: pass")
    found = load("app_here:Up")
    assert found.__module__ == "app_here"


def test_attributes_of_attributes(write: Callable[..., None]) -> None:
    """A target may name a module in a package and a class in a class."""
    write("pack_here/__init__.py", "")
    write("pack_here/inner.py", "class Outer:\n    class Inner: pass\n")
    assert load("pack_here.inner:Outer.Inner").__qualname__ == "Outer.Inner"  # type: ignore[attr-defined]


def test_file_finds_its_neighbours(write: Callable[..., None]) -> None:
    """A file imports modules of its own folder, as with ``python file.py``."""
    write("deep/neighbour_here.py", "answer = 42")
    write("deep/file_here.py", "from neighbour_here import answer")
    assert load("deep/file_here.py:answer") == 42
    assert "file_here" in sys.modules


def test_file_named_like_a_module_that_is_there(write: Callable[..., None]) -> None:
    """A target ``logging.py`` does not replace the standard library's module."""
    import logging

    write("logging.py", "mine = True")
    assert load("logging.py:mine") is True
    assert sys.modules["logging"] is logging


@pytest.mark.parametrize(
    ("reason", "target"),
    [
        ("there is no file nowhere.py", "nowhere.py"),
        ("there is no module nowhere_at_all", "nowhere_at_all"),
        ("no attribute is named; write a b:ATTRIBUTE", "a b"),
        ("no attribute is named; write app.py:ATTRIBUTE", "app.py:"),
        ("the form is module:attribute or file.py:attribute", ":Up"),
        ("the form is module:attribute or file.py:attribute", ":"),
        ("there is no file nowhere.py", "nowhere.py:Up"),
        ("there is no file some/where", "some/where:Up"),
        ("there is no module nowhere_at_all", "nowhere_at_all:Up"),
        ("there is no module nowhere_at_all", "nowhere_at_all.deeper:Up"),
        ("there is no module json.nowhere", "json.nowhere:Up"),
        ("'..x' is not a module name, such as package.module", "..x:Up"),
        ("'a b' is not a module name, such as package.module", "a b:Up"),
        ("'1' is not a module name, such as package.module", "1:Up"),
    ],
)
def test_targets_that_name_nothing(write: Callable[..., None], reason: str, target: str) -> None:
    """The error for a missing or malformed target is one sentence."""
    assert refusal(target) == reason


def test_module_alone_names_its_application(write: Callable[..., None]) -> None:
    """A module without an attribute stands for its ``application`` or ``app``; without them, an attribute is needed."""
    write("first_app.py", "def application(environ, start_response): pass\nclass app: pass")
    write("second_app.py", "application = None\ndef app(environ, start_response): pass")
    write("no_app.py", "import socketserver\nclass One(socketserver.TCPServer): pass")
    assert load("first_app") is load("first_app:application")
    assert load("second_app.py").__name__ == "app"
    assert refusal("no_app") == (
        "no_app has neither application nor app; write no_app:ATTRIBUTE; it has One"
    )


def test_call_of_a_factory_is_answered_with_the_flag() -> None:
    """``module:function()``, gunicorn's form for a factory, is answered with ours before anything is imported."""
    form = "the form for a factory is --factory {}, or factory = true in a file"
    assert refusal("shop:create_app()") == form.format("shop:create_app")
    assert refusal("shop.py:a.b( )") == form.format("shop.py:a.b")
    said = refusal("shop:create_app('x', y={1: 2})")
    assert said.startswith(form.format("shop:create_app"))
    assert said.endswith("called without arguments, so give each of them a default")


def test_misspelt_names_get_a_hint(write: Callable[..., None]) -> None:
    """The error for a misspelt name suggests the nearest module or attribute."""
    write("shouting_app.py", "class Shout: pass\nclass Whisper: pass")
    assert refusal("shoutin_app:Shout").endswith("did you mean shouting_app?")
    assert refusal("shouting_app:Shuot").endswith("has no Shuot; did you mean Shout?")


def test_far_off_names_get_the_list(write: Callable[..., None]) -> None:
    """Where no name is near, the error lists what the module has to serve."""
    write(
        "listing_app.py",
        """
        import socketserver
        from socketserver import StreamRequestHandler, TCPServer
        class One(StreamRequestHandler): pass
        class Two(TCPServer): pass
        three = 3
        """,
    )
    assert refusal("listing_app:qqqqqq") == "listing_app has no qqqqqq; it has One, Two"


@pytest.mark.parametrize(
    ("said", "source"),
    [
        ("ZeroDivisionError: division by zero", "def f():\n    1 / 0\nf()"),
        ("ModuleNotFoundError: No module named 'nowhere_at_all'", "import nowhere_at_all"),
        ("SyntaxError", "def"),
        ("the application called sys.exit('no')", "import sys\nsys.exit('no')"),
        ("FileNotFoundError", "open('nowhere')"),
    ],
)
def test_broken_applications_report_themselves(
    write: Callable[..., None], said: str, source: str
) -> None:
    """The traceback of a broken application has no frame of prefork or of the import machinery."""
    write("broken_here.py", source)
    for target in ("broken_here:x", "broken_here.py:x"):
        with pytest.raises(BootError) as caught:
            load(target)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "broken_here.py" in caught.value.report
        assert "importlib" not in caught.value.report
        assert "target.py" not in caught.value.report
        assert "broken_here" not in sys.modules


def test_module_that_misses_itself_is_broken(write: Callable[..., None]) -> None:
    """A package that cannot import its own part is a broken application and not a missing target."""
    write("half_here/__init__.py", "import half_here.other")
    with pytest.raises(BootError, match=r"No module named 'half_here\.other'"):
        load("half_here:x")


def test_application_that_binds_an_address_in_use(write: Callable[..., None]) -> None:
    """A bind that fails in the application's own code is a BindError with the address."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        write(
            "binding_here.py",
            f"import socketserver as s\nx = s.TCPServer(('127.0.0.1', {port}), 0)",
        )
        with pytest.raises(BindError) as caught:
            load("binding_here:x")
    assert str(caught.value).startswith(
        f"cannot listen on 127.0.0.1:{port}: this process listens there"
    )


def test_working_directory_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory that was removed is a TargetError that says so."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert "working directory does not exist" in refusal("app:Up")
