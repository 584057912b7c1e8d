"""The command line, run as ``python -m prefork``."""

from __future__ import annotations

from prefork.cli import main

if __name__ == "__main__":
    main()
