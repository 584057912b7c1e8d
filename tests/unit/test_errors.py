"""The exceptions of prefork: what a program may do with them, besides catching them."""

from __future__ import annotations

import copy
import pickle

import pytest

import prefork

EXAMPLES = [
    prefork.SettingsError("workers", 0, "flag --workers", "1 or more"),
    prefork.TargetError("module:Server", "no such module"),
    prefork.BindError("127.0.0.1:80", "permission denied"),
    prefork.BootError("no worker became ready", report="Traceback"),
    prefork.CrashLoopError("workers died again and again", report="Traceback"),
    prefork.PreforkError("anything else"),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_errors_can_be_sent_to_another_process(error: prefork.PreforkError) -> None:
    """An error that is pickled or copied keeps its text and what it names."""
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is type(error)
        assert (str(again), vars(again)) == (str(error), vars(error))
