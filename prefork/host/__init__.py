"""What prefork asks of the machine it runs on: addresses, socket files, systemd."""
