"""Errors of the application, as they are reported."""

from __future__ import annotations

from prefork.cli.application_errors import application_report


def test_report_without_a_place_is_left_out() -> None:
    """An exception that only code of prefork has seen has no report, because the message says it all."""
    assert application_report(TypeError("f() missing 1 required argument")) == ""
    assert "line 1" in application_report(SyntaxError("bad", ("app.py", 1, 1, "x y")))


def test_report_keeps_the_chain() -> None:
    """The report of an exception contains its cause."""
    error = ValueError("second")
    error.__cause__ = KeyError("first")
    report = application_report(error)
    assert report.index("KeyError: 'first'") < report.index("ValueError: second")
