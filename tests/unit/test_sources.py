"""The sources of settings: precedence, files, and misspelt variables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from prefork.cli import sources
from prefork.cli.sources import layers, misspelt, read_file
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
    """Resolve the settings of these sources."""
    return resolve(layers(flags, environ or {}, read_file(config, environ or {})))


def workers(*arguments: Any, **flags: Any) -> tuple[int, str]:
    """Return the number of workers and where it came from."""
    found = resolved(*arguments, **flags)
    return found.settings.workers, found.origins["workers"]


def test_precedence(folder: Path) -> None:
    """Of flag, PREFORK_*, WEB_CONCURRENCY and file the first one that has a value wins."""
    environ = {"PREFORK_WORKERS": "2", "WEB_CONCURRENCY": "3"}
    (folder / "prefork.toml").write_text("workers = 4\n")
    assert workers(environ, workers="1") == (1, "flag --workers")
    assert workers(environ) == (2, "environment PREFORK_WORKERS")
    del environ["PREFORK_WORKERS"]
    assert workers(environ) == (3, "environment WEB_CONCURRENCY")
    assert workers({}) == (4, "prefork.toml")


def test_empty_variables_are_not_set() -> None:
    """An empty variable counts as unset."""
    assert resolved({"PREFORK_WORKERS": "", "WEB_CONCURRENCY": ""}).origins["workers"] == "default"


def test_flags_that_were_not_given_say_nothing() -> None:
    """A flag that was not given (None, or an empty tuple) sets nothing."""
    assert resolved(workers=None, bind=()).origins["bind"] == "default"
    assert resolved(bind=("a:1", "b:2")).settings.bind == ("a:1", "b:2")


def test_variables_list_addresses() -> None:
    """One variable can hold several addresses."""
    assert resolved({"PREFORK_BIND": "a:1 unix:/b"}).settings.bind == ("a:1", "unix:/b")


def test_wrong_variables_are_named() -> None:
    """The error for a wrong value names the variable that it came from."""
    with pytest.raises(SettingsError, match=r"from environment WEB_CONCURRENCY"):
        resolved({"WEB_CONCURRENCY": "many"})


def test_pyproject_table(folder: Path) -> None:
    """The table ``[tool.prefork]`` counts where there is no prefork.toml, and may be missing."""
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


@pytest.mark.parametrize(
    ("pyproject", "shadowed"),
    [
        ("[tool.prefork]\nworkers = 3", True),
        ("[tool.other]", False),
        ("tool = 1", False),
        ("[", False),
    ],
)
def test_second_file_is_noticed(folder: Path, pyproject: str, shadowed: bool) -> None:
    """A ``[tool.prefork]`` beside a prefork.toml is not read, and that is noticed unless a file was named."""
    (folder / "pyproject.toml").write_text(pyproject)
    assert sources.shadowed(None, {}) is False
    (folder / "prefork.toml").write_text("workers = 2\n")
    assert sources.shadowed(None, {}) is shadowed
    assert sources.shadowed("prefork.toml", {}) is False
    assert sources.shadowed(None, {"PREFORK_CONFIG": "prefork.toml"}) is False


def test_config_names_the_file(folder: Path) -> None:
    """A file that a flag or a variable names is read instead of those in the working directory."""
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
    """The error for a file that cannot be read has key, value, source and reason."""
    if content is not None:
        (folder / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(SettingsError) as caught:
        resolved(config=name)
    assert (caught.value.key, caught.value.value) == ("config", name)
    assert caught.value.source == "flag --config"
    assert reason in caught.value.allowed


@pytest.mark.parametrize(
    ("name", "head"), [("prefork.toml", ""), ("pyproject.toml", "[tool.prefork]\n")]
)
def test_file_names_the_target(folder: Path, name: str, head: str) -> None:
    """The file may say what is served and whether a function returns it; both are no settings."""
    (folder / name).write_text(f'{head}target = "app:make"\nfactory = true\nworkers = 3\n')
    found = read_file(None, {})
    assert (found.target, found.factory) == ("app:make", True)
    assert workers({})[0] == 3
    (folder / name).write_text(f"{head}workers = 3\n")
    assert (read_file(None, {}).target, read_file(None, {}).factory) == (None, False)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("target = 3", 'it must be text, such as "app:Handler"'),
        ('factory = "yes"', "true or false"),
    ],
)
def test_target_of_another_type_is_refused(folder: Path, content: str, words: str) -> None:
    """A target that is no text, and a factory that is neither true nor false, are refused with the file."""
    (folder / "prefork.toml").write_text(content)
    with pytest.raises(SettingsError, match=rf"from prefork\.toml.*{words}"):
        read_file(None, {})


def test_unknown_keys_of_a_file(folder: Path) -> None:
    """The error for an unknown key names the file and the nearest setting."""
    (folder / "prefork.toml").write_text("max_childen = 3\n")
    with pytest.raises(SettingsError, match=r"prefork\.toml.*did you mean max_children\?"):
        resolved()
    (folder / "prefork.toml").write_text("[prefork]\nworkers = 3\n")
    with pytest.raises(SettingsError, match=r"stand at the top level; remove the line \[prefork\]"):
        resolved()


def test_variables_that_are_nearly_ours() -> None:
    """Misspelt variables are reported, and those that Kubernetes sets for a service called prefork are not."""
    environ = {
        "PREFORK_WORKRES": "3",
        "PREFORK_PORT": "tcp://10.0.0.1:80",
        "PREFORK_SERVICE_HOST": "10.0.0.1",
        "PREFORK_WORKERS": "2",
        "PREFORK_CONFIG": "x",
    }
    assert misspelt(environ) == [("PREFORK_WORKRES", "PREFORK_WORKERS")]
