"""Errors of the application, as they are told."""

from __future__ import annotations

from prefork.cli.application_errors import application_report


def test_report_keeps_the_chain() -> None:
    """Causes are part of what happened."""
    error = ValueError("second")
    error.__cause__ = KeyError("first")
    report = application_report(error)
    assert report.index("KeyError: 'first'") < report.index("ValueError: second")
