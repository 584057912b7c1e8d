"""Errors of the application, as they are reported."""

from __future__ import annotations

from prefork.cli.application_errors import application_report


def test_report_keeps_the_chain() -> None:
    """The report of an exception contains its cause."""
    error = ValueError("second")
    error.__cause__ = KeyError("first")
    report = application_report(error)
    assert report.index("KeyError: 'first'") < report.index("ValueError: second")
