"""The commands, one module each. ``prefork.cli.command_line`` puts them together."""
