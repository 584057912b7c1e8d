"""Mutants: the product with one thing broken on purpose, which a named test has to notice.

A test that cannot fail holds nothing. ``table`` has a row for each promise: the text that is replaced, what
it is replaced by, and the tests that must fail then. ``make mutants`` tries all of them and writes
docs/MUTANTS.md. A unit test holds that every text is still found exactly once.
"""
