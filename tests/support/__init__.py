"""The bench for tests with real processes: programs, clients, load, and facts read from ``/proc``."""
