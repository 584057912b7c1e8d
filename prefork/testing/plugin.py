"""The fixture ``prefork_pool`` for pytest.

``pytest_plugins = ["prefork.testing.plugin"]`` in the topmost ``conftest.py`` gives it to all tests.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from prefork.mixin import PreForkingMixIn
from prefork.testing.pool import ServedPool, serving

__all__ = ["prefork_pool"]


@pytest.fixture
def prefork_pool() -> Iterator[Callable[..., ServedPool]]:
    """``prefork_pool(server, …)`` serves until the end of the test, as ``prefork.testing.serving()`` does.

    It takes what ``serving()`` takes, and may be called several times. The pools are stopped in the
    opposite order, and what is left of one fails the test.
    """
    with contextlib.ExitStack() as ends:

        def serve(*servers: PreForkingMixIn, **options: float) -> ServedPool:
            return ends.enter_context(serving(*servers, **options))

        yield serve
