"""The settings of gunicorn, and what they are here (pure).

``prefork config --from-gunicorn FILE`` reads a gunicorn.conf.py and prints a prefork.toml. A setting is in one of
three groups: it has a counterpart (``_COUNTERPARTS``), it has none and the remark says what to do (``_REMARKS``),
or nothing is to be done, because prefork always does so (``_NOTHING_TO_DO``). Other names in the file are variables
of its author.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

Values = Mapping[str, Any]
Counterpart = Callable[[Any, Values], Mapping[str, object]]
"""Returns settings of prefork, from the value of one setting of gunicorn and from all of them."""


class Mapped(msgspec.Struct, frozen=True):
    """What follows from a gunicorn.conf.py.

    settings: by key, as a prefork.toml has them; ``target`` is among them where the file names an application.
    remarks: by the name of gunicorn's setting, what is to be done by hand.
    """

    settings: Mapping[str, object]
    remarks: Mapping[str, str]


def mapped(values: Values) -> Mapped:
    """Return what follows from the variables of a gunicorn.conf.py."""
    settings: dict[str, object] = {}
    remarks: dict[str, str] = {}
    for name, value in values.items():
        if value is None or value == [] or value is False:
            continue
        if (counterpart := _COUNTERPARTS.get(name)) is not None:
            settings |= counterpart(value, values)
        remark = _REMARKS.get(name, "")
        text = remark(value) if callable(remark) else remark
        if text:
            remarks[name] = text
    return Mapped(settings, remarks)


# --- counterparts


def _same(key: str) -> Counterpart:
    """Return the counterpart that has another name, and the same values."""
    return lambda value, _values: {key: value}


def _unless_zero(key: str) -> Counterpart:
    """Return the counterpart of a limit that is off with 0."""
    return lambda value, _values: {key: value} if value else {}


def _bind(value: Any, _values: Values) -> Mapping[str, object]:
    """Return the addresses; gunicorn takes a host without a port, and means port 8000."""
    found = []
    for one in [value] if isinstance(value, str) else value:
        address = str(one).strip().removeprefix("http://")
        is_whole = address.startswith(("unix:", "fd://")) or address.rpartition(":")[2].isdigit()
        found.append(address if is_whole else f"{address}:8000")
    return {"bind": found}


def _max_requests(value: Any, values: Values) -> Mapping[str, object]:
    """Return the same range: gunicorn's jitter is a number of requests more, and ours is a share less."""
    if not value:
        return {}
    more = int(values.get("max_requests_jitter") or 0)
    most = int(value) + more
    return {"max_requests": most, "jitter": round(more / most, 3)}


def _access_log(value: Any, _values: Values) -> Mapping[str, object]:
    return {"access_log": "combined"} if value else {}


def _umask(value: Any, _values: Values) -> Mapping[str, object]:
    return {"umask": f"{value:03o}" if isinstance(value, int) else value} if value else {}


def _forwarded_from(value: Any, _values: Values) -> Mapping[str, object]:
    names = [one.strip() for one in value.split(",")] if isinstance(value, str) else list(value)
    return {"forwarded_from": _ANYBODY if "*" in names else names}


_ANYBODY: Final = ["0.0.0.0/0", "::/0", "unix"]


def _proxy_from(_value: Any, values: Values) -> Mapping[str, object]:
    """Return the peers that send a PROXY header: those of ``proxy_allow_ips``, or of gunicorn's default."""
    names = values.get("proxy_allow_ips") or "127.0.0.1,::1"
    found = _forwarded_from(names, values)["forwarded_from"]
    return {"proxy_from": found}


def _client_ca(value: Any, values: Values) -> Mapping[str, object]:
    """Return whose certificates clients must show; ``cert_reqs`` 0 asks for none."""
    return {"tls_client_ca": value} if values.get("cert_reqs") else {}


_COUNTERPARTS: Final[Mapping[str, Counterpart]] = {
    "wsgi_app": _same("target"),
    "bind": _bind,
    "backlog": _same("backlog"),
    "workers": _same("workers"),
    "timeout": _unless_zero("request_timeout"),
    "graceful_timeout": _same("graceful_timeout"),
    "keepalive": _same("park_timeout"),
    "max_requests": _max_requests,
    "limit_request_fields": _unless_zero("limit_fields"),
    "accesslog": _access_log,
    "loglevel": _same("log_level"),
    "logconfig": _same("log_config"),
    "logconfig_json": _same("log_config"),
    "proc_name": _same("name"),
    "pidfile": _same("pidfile"),
    "user": _same("user"),
    "group": _same("group"),
    "umask": _umask,
    "certfile": _same("tls_certificate"),
    "keyfile": _same("tls_key"),
    "ca_certs": _client_ca,
    "forwarded_allow_ips": _forwarded_from,
    "proxy_protocol": _proxy_from,
}


# --- what is to be done by hand


def _worker_class(value: Any) -> str:
    if value in {"sync", "gthread"}:
        return ""
    return f"{value} is not served: each worker of prefork serves one request at a time, of a WSGI application"


def _threads(value: Any) -> str:
    if int(value) <= 1:
        return ""
    return (
        "idle connections hold no worker here; for requests that wait for others, set more workers"
    )


def _file_of_log(value: Any) -> str:
    if value == "-":
        return ""
    return (
        "the log goes to standard error; what starts prefork writes it to a file, such as systemd"
    )


def _cert_reqs(value: Any) -> str:
    return (
        "clients must show a certificate here, where gunicorn only asks for one"
        if value == 1
        else ""
    )


def _everybody(value: Any) -> str:
    return "this believes everybody; name the networks of your proxies" if "*" in value else ""


def _hook(name: str) -> str:
    return f"the hook is {name}() of a server class, such as class Server(prefork.wsgi.WSGIServer)"


_IN_PROGRAM: Final = "a tls_context of a server class, an ssl.SSLContext, says this"

_REMARKS: Final[Mapping[str, str | Callable[[Any], str]]] = {
    "worker_class": _worker_class,
    "threads": _threads,
    "worker_connections": "max_parked bounds the idle connections",
    "limit_request_line": "limit_head bounds the whole head, 32K by default",
    "limit_request_field_size": "limit_head bounds the whole head, 32K by default",
    "reload": "give --watch on the command line",
    "cert_reqs": _cert_reqs,
    "forwarded_allow_ips": _everybody,
    "accesslog": _file_of_log,
    "errorlog": _file_of_log,
    "access_log_format": "the formats are common, combined, timed, json and text",
    "logger_class": "log_config configures logging; the access log is the logger prefork.access",
    "logconfig_dict": "write it to a file, and name the file in log_config",
    "syslog": "log_config can name a SysLogHandler",
    "statsd_host": 'metrics = "127.0.0.1:9100" serves Prometheus\' format',
    "dogstatsd_tags": "the metrics have the pool's name as a label of the scrape",
    "daemon": "a service manager starts prefork, such as systemd",
    "chdir": "give --chdir on the command line",
    "pythonpath": "give --chdir on the command line, or set PYTHONPATH",
    "raw_env": "write the variables to a file, and give --env-file on the command line",
    "paste": "load the application in a function, and give --factory",
    "secure_scheme_headers": "the field is X-Forwarded-Proto, or Forwarded with forwarded_fields",
    "forwarder_headers": "fields with an underscore in their names do not reach the application",
    "proxy_allow_ips": _everybody,
    "reuse_port": "all workers share one socket, so that no client waits behind a busy worker",
    "ssl_version": _IN_PROGRAM,
    "ciphers": _IN_PROGRAM,
    "on_starting": "code before serve_forever() does this",
    "on_reload": _hook("on_reload"),
    "when_ready": _hook("when_ready"),
    "pre_fork": _hook("pre_fork"),
    "post_fork": _hook("worker_init"),
    "post_worker_init": _hook("worker_init"),
    "worker_int": "a worker ends no request at INT or QUIT of its own",
    "worker_abort": "the stacks of a worker are logged before it is killed at request_timeout",
    "pre_exec": _hook("on_reload"),
    "pre_request": "a WSGI middleware does this",
    "post_request": "a WSGI middleware does this",
    "child_exit": _hook("worker_died"),
    "worker_exit": _hook("worker_exit"),
    "nworkers_changed": _hook("pool_resized"),
    "on_exit": _hook("on_exit"),
    "ssl_context": _IN_PROGRAM,
}

_NOTHING_TO_DO: Final = frozenset(
    {
        *(
            "preload_app",
            "sendfile",
            "worker_tmp_dir",
            "capture_output",
            "enable_stdio_inheritance",
        ),
        *("max_requests_jitter", "suppress_ragged_eofs", "initgroups", "spew"),
        *(
            "do_handshake_on_connect",
            "reload_engine",
            "reload_extra_files",
            "permit_obsolete_folding",
        ),
        *("check_config", "print_config", "disable_redirect_access_to_syslog", "tmp_upload_dir"),
    }
)

KNOWN: Final = frozenset({*_COUNTERPARTS, *_REMARKS, *_NOTHING_TO_DO})
"""All settings of gunicorn that concern a server of WSGI applications."""
