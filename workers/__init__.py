"""The ground floor: the pool, the worker and the scoreboard. Imports nothing of the floors above."""
