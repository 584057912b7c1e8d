"""The machine around a pool: addresses, socket files, systemd, and what this process was given."""
