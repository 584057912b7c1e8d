"""Readers of running pools from outside: finding one, and showing its state once or live."""
