"""The edge: what happens to a connection between ``accept()`` and ``handle()`` (worker)."""
