"""The process that forks and decides, and the metrics process beside it."""
