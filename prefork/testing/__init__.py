"""Run a server with its pool in a test.

    import prefork.testing

    def test_upper():
        server = prefork.PreForkingTCPServer(("127.0.0.1", 0), Upper)
        with prefork.testing.serving(server) as pool:
            with socket.create_connection(pool.address) as client:
                ...

The end of the block stops the pool, and fails the test if the stop is not graceful or if anything is left.
``pytest_plugins = ["prefork.testing.plugin"]`` in ``conftest.py`` gives the fixture ``prefork_pool``, which does the same
until the end of a test.
"""

from prefork.testing.pool import LeftBehindError, PoolFailedError, ServedPool, serving

__all__ = ["LeftBehindError", "PoolFailedError", "ServedPool", "serving"]
