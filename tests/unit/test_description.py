"""What a pool says of itself comes back as it was said, bounded; whatever else stands there is nothing."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from prefork.host.description import describe
from prefork.metrics.description import (
    LONGEST_TEXT,
    MOST_LISTENERS,
    MOST_SETTINGS,
    ListenerDescription,
    PoolDescription,
)
from prefork.servers import PreForkingTCPServer
from prefork.workers.listener import Listener
from prefork.workers.scoreboard import TEXT_BYTES
from prefork.workers.settings import Settings

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.just("inet"),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["name", "inode", "kind", "family", "listeners", "settings", "version"])
            | st.text(max_size=3),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


def texts_of(pool: PoolDescription) -> list[str]:
    """Return every text of a description."""
    listeners = [text for one in pool.listeners for text in (one.name, one.server)]
    optional = [text for text in (pool.name, pool.metrics) if text is not None]
    return [
        *listeners,
        *optional,
        pool.version,
        pool.python,
        *pool.settings,
        *pool.settings.values(),
    ]


def test_description_comes_back_as_it_was_written() -> None:
    """A master's description is read as it was made, with the listener's inode and the settings as text."""
    with PreForkingTCPServer(("127.0.0.1", 0), lambda *_: None) as server:  # type: ignore[arg-type]
        settings = Settings(workers=2, name="web")
        written = describe(settings, [Listener(server)], {"metrics": "127.0.0.1:9100"})
        inode = os.fstat(server.fileno()).st_ino

    assert PoolDescription.from_text(written.to_text()) == written
    (listener,) = written.listeners
    assert (listener.kind, listener.family, listener.inode) == ("stream", "inet", inode)
    assert (written.name, written.metrics) == ("web", "127.0.0.1:9100")
    assert (written.settings["workers"], written.settings["request_timeout"]) == ("2", "-")


def test_texts_are_printable_and_short() -> None:
    """A terminal and a page get no control character, no turned writing, no half character and no endless text."""
    pool = PoolDescription(name="\x1b[2J\u202eé\ud800", settings={"k": "x" * 10_000})

    for shown in (pool.bounded(), PoolDescription.from_text(pool.to_text())):
        assert shown.name == r"\x1b[2J\u202eé\ud800"
        assert shown.settings == {"k": "x" * LONGEST_TEXT + "…"}


def test_path_that_is_no_utf8_is_described() -> None:
    """A path of arbitrary bytes, which the system allows, does not keep a master from starting."""
    path = os.fsdecode(b"/tmp/pid\xff")
    pool = describe(Settings(workers=1, pidfile=path), [], {})

    assert PoolDescription.from_text(pool.to_text()).settings["pidfile"] == r"/tmp/pid\udcff"


def test_long_description_fits_its_place() -> None:
    """More listeners than the bound do not push the rest of the description out of its place."""
    many = tuple(ListenerDescription(f"unix:/{n:0100}", "stream", "unix", n) for n in range(5000))
    pool = PoolDescription(listeners=many, settings={str(n): "x" for n in range(5000)})

    text = pool.to_text()
    found = PoolDescription.from_text(text)
    assert len(text) < TEXT_BYTES
    assert found.listeners == many[:MOST_LISTENERS]
    assert len(found.settings) == MOST_SETTINGS


@given(JSON.map(json.dumps) | st.text(max_size=50))
@example("[" * 100_000)
@example('{"name": "\\ud800"}')
@example('{"listeners": [{"inode": []}]}')
@example('{"listeners": [{"name": "x", "kind": "pipe"}]}')
@example('{"listeners": [{"name": "x", "inode": 1' + "0" * 500 + "}]}")
def test_nonsense_says_nothing(text: str) -> None:
    """No text raises, and what comes out is printable, bounded and of the promised types."""
    found = PoolDescription.from_text(text)

    assert all(one.isprintable() and len(one) <= LONGEST_TEXT + 1 for one in texts_of(found))
    assert all(isinstance(one.inode, int) for one in found.listeners)
    assert found.to_text().encode()


@pytest.mark.parametrize("more", [{"uptime": 3}, {"listeners": [{"name": "x", "speed": "fast"}]}])
def test_newer_description_is_read_as_far_as_it_is_known(more: dict[str, Any]) -> None:
    """A field that this version does not know is passed over."""
    found = PoolDescription.from_text(json.dumps({"name": "web", **more}))

    assert found.name == "web"
