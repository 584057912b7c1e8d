"""Readers from outside of a running pool: finding it, its status, the live screen."""
