"""The settings table: what is taken, what is refused and how, who wins, and what the docs show."""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from docs import tables
from prefork.workers import settings as settings_module
from prefork.workers.errors import SettingsError
from prefork.workers.layers import Layer, attributes_layer, from_attributes, merge, resolve
from prefork.workers.machine import Usable
from prefork.workers.settings import LONGEST, ROWS, Settings


def four_cpus() -> Usable:
    """Stand in for the machine."""
    return Usable(4, "affinity 4")


def layer(source: str, /, *, text: bool = False, **values: object) -> Layer:
    """Make a layer whose values all come from one place."""
    return Layer(values, lambda _key: source, text)


def refusal(**values: object) -> SettingsError:
    """Return the error with which a file's value is refused."""
    with pytest.raises(SettingsError) as caught:
        resolve([layer("prefork.toml", **values)], cpus=four_cpus)
    return caught.value


def value_of(key: str, raw: object, *, text: bool = False) -> Any:
    """Return what a raw value becomes."""
    resolved = resolve([layer("somewhere", text=text, **{key: raw})], cpus=four_cpus)
    return getattr(resolved.settings, key)


# --- values


_STRANGE = st.one_of(
    st.text(max_size=20),
    st.integers(),
    st.integers(min_value=300, max_value=5000).map("9".__mul__),
    st.floats(),
    st.none(),
    st.booleans(),
    st.binary(max_size=3),
    st.lists(st.text(max_size=3), max_size=2),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=1),
)


@given(st.sampled_from(sorted(ROWS)), _STRANGE)
def test_any_value_is_read_or_refused(key: str, raw: object) -> None:
    """Whatever a value is, in whatever layer, a setting comes out or a SettingsError, and nothing else."""
    with contextlib.suppress(SettingsError):
        Settings(**{key: raw})
    for is_text in (False, True):
        if not is_text or isinstance(raw, str):
            with contextlib.suppress(SettingsError):
                value_of(key, raw, text=is_text)


def test_sizes_of_any_length() -> None:
    """A size of hundreds of digits is refused as too large; a large one loses no digit."""
    for raw in ("9" * 310, "9" * 310 + ".5G", "9" * 5000):
        assert refusal(max_memory=raw).key == "max_memory"
    assert value_of("max_memory", "1125899906842623") == 1125899906842623


@pytest.mark.parametrize(
    ("seconds", "raw"),
    [(30, 30), (30, "30"), (30, "30s"), (0.5, "500ms"), (300, "5m"), (7200, "2h"), (1.5, "1.5s")],
)
def test_durations(seconds: float, raw: object) -> None:
    """A duration is a number of seconds or a number with its unit."""
    assert value_of("graceful_timeout", raw) == seconds


@pytest.mark.parametrize(
    "raw", ["", "s", "-1", "30 s s", "1d", "1e3", "nan", "inf", "٣", True, None, [30], -0.1, 1e9]
)
def test_durations_that_cannot_be(raw: object) -> None:
    """Whatever is no duration of at most a week is refused, and the units are named."""
    error = refusal(graceful_timeout=raw)
    assert (error.key, error.value, error.source) == ("graceful_timeout", raw, "prefork.toml")
    assert "500ms" in error.allowed


@given(st.floats(0, LONGEST, allow_nan=False))
def test_a_shown_duration_reads_the_same(seconds: float) -> None:
    """What ``prefork config`` prints can be put into a file."""
    row = ROWS["drain_delay"]
    again = row.converted(row.shown(round(seconds, 3)), "config")
    assert again == pytest.approx(round(seconds, 3), abs=1e-6)


def test_boot_timeout_of_nothing_is_refused() -> None:
    """A worker that may take no time to boot could never be ready."""
    assert "more than 0" in refusal(boot_timeout=0).allowed


@pytest.mark.parametrize(
    ("mask", "raw"), [(0o27, "027"), (0o27, "0o27"), (0o27, 0o27), (0, "0"), (0o777, "777")]
)
def test_umask_is_octal_text_or_a_number(mask: int, raw: object) -> None:
    """Text is octal as in chmod; a number (0o27 in TOML and Python) is what it is."""
    assert value_of("umask", raw) == mask


@pytest.mark.parametrize("raw", ["8", "1000", "rwx", -1, 0o1000, True, ""])
def test_umask_that_cannot_be(raw: object) -> None:
    """A mask has three octal digits."""
    assert "octal" in refusal(umask=raw).allowed


def test_users_and_groups_are_known_names_or_numbers() -> None:
    """A name must be known here; a number need not be, as in containers."""
    assert value_of("user", "root") == "root"
    assert value_of("user", "54321") == 54321
    assert value_of("group", 0) == 0
    assert "numeric uid" in refusal(user="nobody-of-that-name").allowed
    assert "numeric gid" in refusal(group="nobody-of-that-name").allowed
    assert refusal(user=-1).key == "user"
    assert refusal(user=2**32 - 1).key == "user"
    assert refusal(user="").key == "user"


@pytest.mark.parametrize("raw", ["", "two words", "a]", "x" * 65, "line\nbreak", "ok\n", 7])
def test_names_that_do_not_fit_a_title(raw: object) -> None:
    """A name stands between brackets in a process title, so it is one plain word."""
    assert refusal(name=raw).key == "name"


def test_choices_are_listed() -> None:
    """A value that is none of the choices is answered with all of them."""
    assert refusal(log_level="loud").allowed == "one of debug, info, warning, error, critical"
    assert refusal(log_format="xml").allowed == "one of text, json"
    assert value_of("log_level", "WARNING") == "warning"


def test_text_is_a_number_only_where_everything_is_text() -> None:
    """``"4"`` is a number in a flag, and a mistake in a file."""
    assert value_of("max_children", "7", text=True) == 7
    assert refusal(max_children="7").value == "7"
    assert refusal(max_children=7.0).value == 7.0
    assert refusal(max_children=True).value is True


@pytest.mark.parametrize(
    ("raw", "hint"), [("4", True), ("many", False), (-4, False), ("99999999", False)]
)
def test_number_in_quotes_is_recognised(raw: object, hint: bool) -> None:
    """A number that is text in a file is refused with the remedy; what is no number at all is not."""
    with pytest.raises(SettingsError) as caught:
        ROWS["max_requests" if raw != "99999999" else "max_children"].converted(raw, "prefork.toml")
    assert caught.value.allowed.endswith(", without quotes") is hint


@pytest.mark.parametrize("raw", ["a:1 b:2", "a:1,b:2", "a:1, b:2", ["a:1", "b:2"]])
def test_several_addresses_stand_in_one_text(raw: object) -> None:
    """An environment variable or a file may list addresses; addresses themselves are read later."""
    assert value_of("bind", raw) == ("a:1", "b:2")


def test_addresses_that_are_none() -> None:
    """At least one address is needed."""
    assert refusal(bind=[]).key == "bind"
    assert refusal(bind="").key == "bind"
    assert refusal(bind=[1]).key == "bind"


@pytest.mark.parametrize("raw", [0, 4097, "many", None])
def test_max_children_sizes_shared_memory_and_is_bounded(raw: object) -> None:
    """The bound itself is bounded."""
    assert refusal(max_children=raw).allowed == "a number from 1 to 4096"


# --- workers and their bound


def test_more_workers_than_children_are_refused() -> None:
    """The error names both settings, both values and both sources."""
    with pytest.raises(SettingsError) as caught:
        resolve([layer("prefork.toml", max_children=3), layer("flag --workers", workers=4)])
    assert str(caught.value) == (
        "workers = 4 (from flag --workers) is refused: "
        "at most max_children = 3 (from prefork.toml); raise that or lower this"
    )


def test_automatic_workers_are_bounded_silently() -> None:
    """Nobody asked for four workers, so three are right."""
    resolved = resolve([layer("prefork.toml", max_children=3)], cpus=four_cpus)
    assert resolved.settings.workers == 3
    assert resolved.cpus == four_cpus()
    assert type(resolved.settings.workers) is int


@pytest.mark.parametrize(
    ("values", "room"),
    [
        ({"workers": 4}, 40),
        ({"workers": 40}, 40),
        ({"workers": 64}, 64),
        ({"workers": 4, "min_spare": 2}, 40),
        ({"workers": 64, "min_spare": 2}, 128),
        ({"workers": 3000, "min_spare": 2}, 4096),
        ({"workers": "auto"}, 96),
        ({"workers": "auto", "min_spare": 2}, 192),
        ({}, 96),
    ],
    ids=str,
)
def test_max_children_rises_with_the_workers(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], room: int
) -> None:
    """Without a value of its own the bound has room for the workers that were asked for, and twice that with spares."""
    many = Usable(96, "a large machine")
    monkeypatch.setattr(settings_module, "usable_cpus", lambda: many)
    resolved = resolve([layer("flag", **values)], cpus=lambda: many)
    assert resolved.settings.max_children == room
    wanted = values.get("workers", "auto")
    assert resolved.settings.workers == (96 if wanted == "auto" else wanted)
    assert resolved.origins["max_children"] == "default"
    made = Settings(**values)
    assert (made.workers, made.max_children) == (resolved.settings.workers, room)


def test_given_max_children_is_a_hard_bound() -> None:
    """A bound that was given lowers ``auto`` and refuses a larger number, also where it is the usual one."""
    many = Usable(96, "a large machine")
    resolved = resolve([layer("prefork.toml", max_children=40)], cpus=lambda: many)
    assert (resolved.settings.workers, resolved.settings.max_children) == (40, 40)
    for values in ({"workers": 41}, {"workers": 64, "min_spare": 1}):
        with pytest.raises(SettingsError, match="at most max_children = 40"):
            resolve([layer("flag", max_children=40, **values)])
        with pytest.raises(SettingsError, match="at most max_children = 40"):
            Settings(max_children=40, **values)


def test_soft_timeout_comes_before_the_worker_is_killed() -> None:
    """A soft_timeout that could never be reached is refused, with both settings, values and sources."""
    with pytest.raises(SettingsError) as caught:
        resolve(
            [layer("prefork.toml", soft_timeout="10s"), layer("flag -t", request_timeout="10s")]
        )
    assert str(caught.value) == (
        "soft_timeout = 10.0 (from prefork.toml) is refused: "
        "less than request_timeout = 10s (from flag -t), which kills the worker"
    )
    with pytest.raises(SettingsError, match="less than request_timeout"):
        Settings(soft_timeout=11, request_timeout=10)
    Settings(soft_timeout=9, request_timeout=10)


def test_given_workers_need_no_counting() -> None:
    """CPUs are counted only for ``auto``."""
    resolved = resolve([layer("flag --workers", workers="auto"), layer("x", workers=1)])
    assert (resolved.settings.workers, resolved.cpus) == (1, None)


def test_auto_from_above_wins_over_a_number() -> None:
    """``--workers auto`` takes back what a file says."""
    resolved = resolve(
        [layer("prefork.toml", workers=1), layer("flag --workers", workers="auto")],
        cpus=four_cpus,
    )
    assert resolved.settings.workers == 4
    assert resolved.origins["workers"] == "flag --workers"


def test_no_workers_serve_in_the_master() -> None:
    """Zero is a value, not an absence."""
    assert value_of("workers", 0) == 0


# --- layers


def test_the_last_layer_wins_and_is_remembered() -> None:
    """Each value keeps the words for where it came from."""
    resolved = resolve(
        [
            layer("attribute Prime.max_children", max_children=5, drain_delay=1),
            layer("prefork.toml", max_children=6),
            layer("environment PREFORK_MAX_CHILDREN", text=True, max_children="7"),
        ]
    )
    assert resolved.settings.max_children == 7
    assert resolved.origins["max_children"] == "environment PREFORK_MAX_CHILDREN"
    assert resolved.origins["drain_delay"] == "attribute Prime.max_children"
    assert resolved.origins["umask"] == "default"


def test_losing_values_are_checked_as_well() -> None:
    """A wrong line in a file does not wait until the flag is left out one day."""
    with pytest.raises(SettingsError, match=r"prefork\.toml"):
        merge([layer("prefork.toml", max_children="x"), layer("flag", max_children=3)])


@pytest.mark.parametrize(
    ("key", "meant"),
    [("wrokers", "workers"), ("max-children", "max_children"), ("Bind", "bind")],
)
def test_unknown_keys_name_the_nearest(key: str, meant: str) -> None:
    """A mistyped key is refused, and told what it was meant to be."""
    assert refusal(**{key: 1}).allowed == f"there is no such setting; did you mean {meant}?"


def test_unknown_keys_without_a_neighbour_list_all() -> None:
    """A key like no other is answered with the whole list."""
    error = refusal(qqq=1)
    assert all(key in error.allowed for key in ROWS)


# --- the library's side


class Configured:
    """A server class as a user configures it."""

    workers = 3
    pool_name = "prime"
    graceful_timeout = "500ms"
    run_as_user = "root"


def test_attributes_are_settings() -> None:
    """Class attributes bear the setting's name, or the longer one where that would collide."""
    settings = from_attributes(Configured).settings
    assert (settings.workers, settings.name, settings.user) == (3, "prime", "root")
    assert settings.graceful_timeout == 0.5


def test_instance_attributes_count() -> None:
    """What ``__init__`` sets is read as well, and named after the class."""
    server = Configured()
    server.workers = -1
    with pytest.raises(SettingsError, match=r"workers = -1 \(from attribute Configured\.workers\)"):
        from_attributes(server)


def test_attributes_that_equal_the_default_are_nobodys_choice() -> None:
    """The mix-in's own attributes do not show up as an origin."""

    class Plain:
        workers = "auto"
        max_children = 40
        boot_timeout = 60.0
        umask = None

    assert attributes_layer(Plain).values == {}


def test_generic_attributes_of_other_servers_are_not_settings() -> None:
    """``name``, ``user`` and ``bind`` of a foreign server class mean something else."""

    class Foreign:
        name = "a name with blanks"
        user = 42
        bind = "method"
        backlog = "x"
        log_level = 9

    assert attributes_layer(Foreign).values == {}


# --- Settings made by hand


def test_settings_made_by_hand_know_their_names() -> None:
    """A name that is no setting is refused like a wrong value, with the name that was meant."""
    with pytest.raises(
        SettingsError, match=r"worker = 3 \(from Settings\(worker=…\)\) .* mean workers\?"
    ):
        Settings(worker=3)  # type: ignore[call-arg]


def test_settings_show_what_they_take() -> None:
    """The signature has each name with its default, and the docstring a line for each setting."""
    shown = inspect.signature(Settings).parameters

    assert {name: one.default for name, one in shown.items()} == {
        row.key: row.default for row in ROWS.values()
    }
    for row in ROWS.values():
        assert f"\n    {row.key}: {row.about.help}\n" in f"{Settings.__doc__}\n"


def test_settings_made_by_hand_are_checked() -> None:
    """``prefork.Settings(...)`` is as strict as every other way."""
    assert Settings(workers=2, drain_delay=5).drain_delay == 5
    with pytest.raises(SettingsError, match=r"Settings\(workers=…\)"):
        Settings(workers="2")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="max_children = 40"):
        Settings(workers=41, max_children=40)
    assert Settings(max_children=1).workers == 1
    assert Settings(workers="auto", max_children=1).workers == 1
    assert Settings(request_timeout="2m", max_memory="1G").max_memory == 2**30


def test_settings_never_change() -> None:
    """Whoever holds settings can rely on them."""
    with pytest.raises(AttributeError):
        Settings(workers=1).workers = 2  # type: ignore[misc]


# --- one table for everything


def test_every_row_speaks_for_itself() -> None:
    """Each setting has one sentence of help, and what is allowed; its default is allowed."""
    for row in ROWS.values():
        assert row.about.help.endswith(".")
        assert row.about.help.count(". ") == 0
        assert row.about.allowed
        if row.default is not None and row.default != "auto":
            assert row.converted(row.default, "default") == row.default


def test_flags_do_not_collide() -> None:
    """No two settings share a flag, a variable or an attribute."""
    rows = ROWS.values()
    shorts = [row.about.short for row in rows if row.about.short]
    attributes = [row.attribute for row in rows if row.attribute]
    assert len(set(shorts)) == len(shorts)
    assert len(set(attributes)) == len(attributes)
    assert ROWS["max_children"].flag == "--max-children"
    assert ROWS["max_children"].variable == "PREFORK_MAX_CHILDREN"


def test_documents_show_every_setting() -> None:
    """The table of docs/SETTINGS.md has a row for each setting, with all its names and its default."""
    lines = tables.settings().splitlines()
    assert len(lines) == 2 + len(ROWS)
    assert lines[0].startswith("| setting")
    assert (
        "| `name` | `-n`, `--name NAME` | `PREFORK_NAME` | `pool_name` | - |" in tables.settings()
    )
    assert "`25s`" in tables.settings()
