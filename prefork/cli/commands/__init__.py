"""The commands of the command line, one module each; ``prefork.cli`` puts them together."""
