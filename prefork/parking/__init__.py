"""Parked connections: idle clients that hold no worker (docs/PARKING.md)."""
