"""Words of other servers' command lines, and what prefork calls them (pure).

Users of gunicorn, uvicorn and granian type these by habit. The words are not accepted, because each
program should have one word for one thing. They are answered with the word to type.
"""

from __future__ import annotations

from typing import Final

FLAGS: Final = {
    "--from-gunicorn": "prefork config --from-gunicorn FILE, which prints a prefork.toml",
    "--reload": "--watch",
    "-k": "one kind of worker, which serves one request at a time; idle connections are parked",
    "--worker-class": "one kind of worker, which serves one request at a time; idle connections are parked",
    "--worker-connections": "--max-parked for idle connections",
    "--keep-alive": "--park-timeout",
    "--certfile": "--tls-certificate",
    "--keyfile": "--tls-key",
    "--ca-certs": "--tls-client-ca",
    "--ssl-certfile": "--tls-certificate",
    "--ssl-keyfile": "--tls-key",
    "--forwarded-allow-ips": "--forwarded-from",
    "--proxy-protocol": "--proxy-from",
    "--proxy-allow-from": "--proxy-from",
    "--proxy-headers": "--forwarded-from",
    "--limit-request-line": "--limit-head",
    "--limit-request-field_size": "--limit-head",
    "--limit-request-fields": "--limit-fields",
    "--statsd-host": "--metrics",
    "--worker-tmp-dir": "nothing: no file is written for each worker",
    "--env": "--env-file",
    "--proc-name": "--name",
    "--reuse-port": "nothing: all workers share one socket, so that no client waits behind a busy worker",
    "-D": "a service manager, such as systemd, that starts prefork run",
    "--host": "--bind HOST:PORT",
    "--port": "--bind HOST:PORT",
    "--uds": "--bind unix:/path",
    "--fd": "--bind fd://3",
    "--timeout": "--request-timeout, or --client-timeout for silent clients",
    "--timeout-graceful-shutdown": "--graceful-timeout",
    "--worker-timeout": "--request-timeout",
    "--max-requests-jitter": "--jitter",
    "--limit-max-requests": "--max-requests",
    "--workers-lifetime": "--max-lifetime",
    "--workers-max-rss": "--max-memory",
    "--limit-concurrency": "--max-children",
    "--pid": "--pidfile",
    "--access-logfile": "--access-log combined, which goes to standard error with the log",
    "--access-logformat": "--access-log common, combined, timed, json or text",
    "--no-access-log": "--access-log off, which is the default",
    "--log-file": "standard error: the program that starts prefork writes it to a file",
    "--error-logfile": "standard error: the program that starts prefork writes it to a file",
    "--use-colors": "no colours: the log is the same on a terminal and in a file",
    "--check-config": "prefork check TARGET",
    "--print-config": "prefork config",
    "--daemon": "a service manager, such as systemd, that starts prefork run",
    "--threads": "--workers; idle connections hold none. A server class with ThreadingMixIn has threads",
    "--timeout-keep-alive": "--park-timeout, for handlers that park (docs/PARKING.md)",
    "--ssl-ca-certs": "--tls-client-ca",
    "--ssl-certificate": "--tls-certificate",
    "--preload": "nothing: the application is always loaded before the workers are forked",
    "--app-dir": "--chdir",
    "--pythonpath": "--chdir",
}
"""Flags of other servers, and what to type instead."""

COMMANDS: Final = {
    "restart": "reload (new code in place), or stop and then run",
    "start": "run TARGET",
    "serve": "run TARGET",
    "help": "--help",
    "version": "--version",
    "ps": "status",
    "list": "status",
    "show": "status",
    "kill": "stop --now",
    "quit": "stop",
    "shutdown": "stop",
    "add": "scale +1",
    "remove": "scale -1",
    "workers": "scale N",
    "test": "check TARGET",
    "validate": "check TARGET",
    "settings": "config",
}
"""Commands of other programs, and ours."""


def instead_of(word: str) -> str | None:
    """Return what to type instead of a flag or a command; None for a word that no other program has."""
    return FLAGS.get(word) or COMMANDS.get(word)
