"""The command line, run as ``python -m prefork.cli``."""

from __future__ import annotations

from prefork.cli import main

if __name__ == "__main__":
    main()
