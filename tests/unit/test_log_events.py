"""docs/LOG-EVENTS.md lists each event that the source can log, with its levels and facts, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from tests.support.log_events import sites

pytestmark = pytest.mark.once  # a document, and the source

PAGE = Path(__file__).parents[2] / "docs" / "LOG-EVENTS.md"
ROW = re.compile(r"^\| `(.+?)` \| ([A-Z, ]+) \|(.*?)\| (.+) \|$", re.MULTILINE)


class Event(msgspec.Struct):
    """What page or source say of one event, all lines of it together.

    others: whether the source gives facts whose keys it does not name.
    """

    levels: set[str] = msgspec.field(default_factory=set)
    facts: set[str] = msgspec.field(default_factory=set)
    report: bool = False
    others: bool = False


def on_the_page() -> dict[str, Event]:
    """Return the rows of the page by event."""
    events: dict[str, Event] = {}
    for name, levels, facts, _ in ROW.findall(PAGE.read_text(encoding="utf-8")):
        event = events.setdefault(name, Event())
        event.levels.update(levels.split(", "))
        event.facts.update(re.findall(r"`(\w+)`", facts))
        event.report |= "*report*" in facts
    return events


def in_the_source() -> dict[str, Event]:
    """Return the calls of the source by event."""
    events: dict[str, Event] = {}
    for site in sites():
        for name in site.events:
            event = events.setdefault(name, Event())
            event.levels.update(site.levels)
            event.facts.update(site.facts)
            event.report |= site.report
            event.others |= site.others
    return events


def test_every_event_is_listed_and_no_other() -> None:
    """The page has a row for each event of the source, and each of its rows is an event of the source."""
    assert sorted(on_the_page()) == sorted(in_the_source())


def test_levels_and_facts_are_those_of_the_source() -> None:
    """Each row has the levels and facts of the calls that log the event, and says whether a report may follow."""
    source, page = in_the_source(), on_the_page()
    for name in page.keys() & source.keys():
        row, event = page[name], source[name]
        assert row.levels <= event.levels, name
        assert row.facts >= event.facts, name
        assert event.others or row.facts == event.facts, name
        assert row.report == event.report, name
    for site in sites():
        listed = set().union(*(page[name].levels for name in site.events if name in page))
        assert listed >= set(site.levels), site
