"""Where raw settings come from: precedence, files, and variables that are nearly ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from prefork.cli.sources import layers, misspelt
from prefork.workers.errors import SettingsError
from prefork.workers.layers import Resolved, resolve

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def resolved(
    environ: dict[str, str] | None = None, config: str | None = None, **flags: Any
) -> Resolved:
    """Resolve what these places say."""
    return resolve(layers(flags, environ or {}, config))


def workers(*arguments: Any, **flags: Any) -> tuple[int, str]:
    """Return the number of workers and where it came from."""
    found = resolved(*arguments, **flags)
    return found.settings.workers, found.origins["workers"]


def test_precedence(folder: Path) -> None:
    """Flag, PREFORK_*, WEB_CONCURRENCY, file: each covers the ones after it."""
    environ = {"PREFORK_WORKERS": "2", "WEB_CONCURRENCY": "3"}
    (folder / "prefork.toml").write_text("workers = 4\n")
    assert workers(environ, workers="1") == (1, "flag --workers")
    assert workers(environ) == (2, "environment PREFORK_WORKERS")
    del environ["PREFORK_WORKERS"]
    assert workers(environ) == (3, "environment WEB_CONCURRENCY")
    assert workers({}) == (4, "prefork.toml")


def test_empty_variables_are_not_set() -> None:
    """Compose files pass them when the host has none."""
    assert resolved({"PREFORK_WORKERS": "", "WEB_CONCURRENCY": ""}).origins["workers"] == "default"


def test_flags_that_were_not_given_say_nothing() -> None:
    """Click passes None, and an empty tuple for what may be repeated."""
    assert resolved(workers=None, bind=()).origins["bind"] == "default"
    assert resolved(bind=("a:1", "b:2")).settings.bind == ("a:1", "b:2")


def test_variables_list_addresses() -> None:
    """One variable, several addresses."""
    assert resolved({"PREFORK_BIND": "a:1 unix:/b"}).settings.bind == ("a:1", "unix:/b")


def test_wrong_variables_are_named() -> None:
    """The source tells which line of a unit file to look at."""
    with pytest.raises(SettingsError, match=r"from environment WEB_CONCURRENCY"):
        resolved({"WEB_CONCURRENCY": "many"})


def test_pyproject_table(folder: Path) -> None:
    """``[tool.prefork]``, when there is no prefork.toml; a project without it is none of ours."""
    (folder / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert resolved().origins["umask"] == "default"
    (folder / "pyproject.toml").write_text("[tool.prefork]\numask = '027'\n")
    found = resolved()
    assert (found.settings.umask, found.origins["umask"]) == (
        0o27,
        "pyproject.toml [tool.prefork]",
    )
    (folder / "prefork.toml").write_text("")
    assert resolved().origins["umask"] == "default"


def test_config_names_the_file(folder: Path) -> None:
    """A flag or a variable; then the working directory's own is not read."""
    (folder / "prefork.toml").write_text("workers = 1\n")
    (folder / "other.toml").write_text("workers = 2\n")
    assert workers(None, "other.toml") == (2, "other.toml")
    assert workers({"PREFORK_CONFIG": "other.toml"}) == (2, "other.toml")
    assert workers({"PREFORK_CONFIG": "nowhere"}, "other.toml") == (2, "other.toml")


@pytest.mark.parametrize(
    ("reason", "name", "content"),
    [
        ("No such file", "x.toml", None),
        ("not valid TOML", "x.toml", "workers = "),
        ("not valid TOML", "x.toml", "\udcff"),
        ("no table [tool.prefork]", "pyproject.toml", "[project]"),
        ("no table [tool.prefork]", "pyproject.toml", "tool.prefork = 1"),
        ("no table [tool.prefork]", "pyproject.toml", "tool = 1"),
    ],
)
def test_files_that_cannot_be(folder: Path, reason: str, name: str, content: str | None) -> None:
    """Key, value, source and reason, as with every setting."""
    if content is not None:
        (folder / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(SettingsError) as caught:
        resolved(config=name)
    assert (caught.value.key, caught.value.value) == ("config", name)
    assert caught.value.source == "flag --config"
    assert reason in caught.value.allowed


def test_unknown_keys_of_a_file(folder: Path) -> None:
    """The file is named, and the nearest setting."""
    (folder / "prefork.toml").write_text("max_childen = 3\n")
    with pytest.raises(SettingsError, match=r"prefork\.toml.*did you mean max_children\?"):
        resolved()
    (folder / "prefork.toml").write_text("[prefork]\nworkers = 3\n")
    with pytest.raises(SettingsError, match="there is no such setting"):
        resolved()


def test_variables_that_are_nearly_ours() -> None:
    """Mistyped ones are told; those that Kubernetes makes for a service called prefork are not."""
    environ = {
        "PREFORK_WORKRES": "3",
        "PREFORK_PORT": "tcp://10.0.0.1:80",
        "PREFORK_SERVICE_HOST": "10.0.0.1",
        "PREFORK_WORKERS": "2",
        "PREFORK_CONFIG": "x",
    }
    assert misspelt(environ) == [("PREFORK_WORKRES", "PREFORK_WORKERS")]
