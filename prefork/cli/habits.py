"""Words of other servers' command lines, and what prefork calls them (pure).

Users of gunicorn, uvicorn and granian type these by habit. The words are not accepted, because each
program should have one word for one thing. They are answered with the word to type.
"""

from __future__ import annotations

from typing import Final

_OF_SEVERAL: Final = {
    "a tls_context of a server class, an ssl.SSLContext that says this": (
        "--ciphers",
        "--ssl-version",
    ),
    "--log-config, whose file can name a SysLogHandler": (
        *("--log-syslog", "--log-syslog-to", "--log-syslog-prefix", "--log-syslog-facility"),
        "--disable-redirect-access-to-syslog",
    ),
    "--metrics, in the format of Prometheus": (
        "--dogstatsd-tags",
        "--statsd-prefix",
        "--enable-backlog-metric",
    ),
    "no such choice: these requests are refused": (
        *("--permit-obsolete-folding", "--strip-header-spaces", "--casefold-http-method"),
        *("--permit-unconventional-http-method", "--permit-unconventional-http-version"),
    ),
    "--factory, with a function that loads the application": (
        "--paste",
        "--paster",
        "--paste-global",
    ),
    "nothing: the application writes to the standard output and error of prefork": (
        "--capture-output",
        "-R",
        "--enable-stdio-inheritance",
    ),
    "HTTP/1.1 alone": (
        *("--protocol", "--uwsgi-allow-from", "--http-protocols", "--http2-cleartext"),
        *("--http2-max-concurrent-streams", "--http2-initial-window-size"),
        *("--http2-max-frame-size", "--http2-max-header-list-size"),
    ),
    "applications of WSGI alone": (
        *("--asgi-loop", "--asgi-lifespan", "--asgi-disconnect-grace-period"),
        "--websocket-max-message-size",
    ),
    "no such choice: fields with an underscore in their names do not reach the application": (
        "--forwarder-headers",
        "--header-map",
    ),
    "the commands prefork status, scale and reload, which need no socket": (
        *("--control-socket", "--control-socket-mode", "--no-control-socket"),
    ),
    "one kind of worker; slow work goes to a pool of its own (docs/JOBS.md)": (
        *("--dirty-app", "--dirty-workers", "--dirty-timeout", "--dirty-threads"),
        "--dirty-graceful-timeout",
    ),
}
"""Answers that several flags have."""

FLAGS: Final = {
    **{flag: answer for answer, flags in _OF_SEVERAL.items() for flag in flags},
    "--cert-reqs": "--tls-client-ca, with which clients must show a certificate",
    "--do-handshake-on-connect": "nothing: a worker settles TLS before it reads the request",
    "--http-parser": "one parser, httptools",
    "--initgroups": "nothing: with --user, the workers are in the groups of that user",
    "--log-config-json": "--log-config, with a file whose name ends in .json",
    "--logger-class": "--log-config; the access log is the logger prefork.access",
    "--no-sendfile": "nothing: only a file that the application wraps (wsgi.file_wrapper) goes by sendfile()",
    "--reload-engine": "--watch",
    "--reload-extra-file": "--watch",
    "--root-path": "no such choice: a WSGI middleware sets SCRIPT_NAME",
    "--spew": "prefork dump, which logs the stacks of all workers",
    "--suppress-ragged-eofs": "nothing: a client may close a connection without the end of TLS",
    "-e": "--env-file",
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
