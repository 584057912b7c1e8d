"""The middle floor: readers of the scoreboard. Imports ``prefork.workers`` and nothing above it."""
