"""The ground floor: what the master and its workers share. Imports nothing of the floors above."""
