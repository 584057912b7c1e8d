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
    read = {name: _read(name, value) for name, value in values.items()}
    for name, value in read.items():
        if value is None or value == [] or value is False:
            continue
        if (counterpart := _COUNTERPARTS.get(name)) is not None:
            settings |= counterpart(value, read)
        remark = _REMARKS.get(name, "")
        text = remark(value) if callable(remark) else remark
        if text:
            remarks[name] = text
    remarks |= {name: text for name, text in _OTHER_DEFAULTS.items() if read.get(name) is None}
    return Mapped(settings, remarks)


# --- values as gunicorn reads them

_NUMBERS: Final = frozenset(
    {
        *("backlog", "workers", "threads", "worker_connections", "timeout", "graceful_timeout"),
        *("keepalive", "max_requests", "max_requests_jitter", "limit_request_line"),
        *("limit_request_fields", "limit_request_field_size", "umask", "cert_reqs"),
    }
)

_SWITCHES: Final = frozenset(
    {
        *("reload", "daemon", "syslog", "reuse_port", "proxy_protocol", "strip_header_spaces"),
        *("permit_unconventional_http_method", "permit_unconventional_http_version"),
        "casefold_http_method",
    }
)


def _read(name: str, value: Any) -> Any:
    """Return a value as gunicorn understands it: numbers and switches may be words, such as those of os.environ."""
    if not isinstance(value, str):
        return value
    if name in _NUMBERS:
        try:
            return int(value, 0)
        except ValueError:
            return value
    return False if name in _SWITCHES and value.strip().lower() in {"false", "off"} else value


# --- counterparts


def _same(key: str) -> Counterpart:
    """Return the counterpart that has another name, and the same values."""
    return lambda value, _values: {key: value}


def _unless_zero(key: str) -> Counterpart:
    """Return the counterpart of a limit that is off with 0."""
    return lambda value, _values: {key: value} if value else {}


def _target(value: Any, _values: Values) -> Mapping[str, object]:
    """Return what is served; gunicorn calls a function that has brackets behind its name."""
    function, bracket, _arguments = str(value).partition("(")
    return {"target": function, "factory": True} if bracket else {"target": value}


def _park_timeout(value: Any, _values: Values) -> Mapping[str, object]:
    """Return how long an idle connection stays; 0 means not at all in gunicorn, and without limit here."""
    return {"park_timeout": value or SHORTEST_PARKING}


SHORTEST_PARKING: Final = 1
"""Seconds for which idle connections are kept where gunicorn keeps none."""


def _bind(value: Any, _values: Values) -> Mapping[str, object]:
    """Return the addresses. gunicorn splits a str at commas, and takes port 8000 for a host without one."""
    found = []
    for one in value.split(",") if isinstance(value, str) else value:
        address = str(one).strip().removeprefix("http://")
        if address.startswith("unix://"):
            address = f"unix:{address.removeprefix('unix://')}"
        is_whole = address.startswith(("unix:", "fd://")) or address.rpartition(":")[2].isdigit()
        if address:
            found.append(address if is_whole else f"{address}:8000")
    return {"bind": found} if found else {}


def _max_requests(value: Any, values: Values) -> Mapping[str, object]:
    """Return the same range: gunicorn's jitter is a number of requests more, and ours is a share less."""
    if not value:
        return {}
    more = values.get("max_requests_jitter") or 0
    if not (isinstance(value, int) and isinstance(more, int)):
        return {"max_requests": value, "jitter": more}  # no numbers: the settings refuse them
    most = value + more
    return {"max_requests": most, "jitter": round(more / most, 3)}


def _access_log(value: Any, _values: Values) -> Mapping[str, object]:
    return {"access_log": "combined"} if value else {}


def _umask(value: Any, _values: Values) -> Mapping[str, object]:
    return {"umask": f"{value:03o}" if isinstance(value, int) else value} if value else {}


def _forwarded_from(value: Any, _values: Values) -> Mapping[str, object]:
    given = value.split(",") if isinstance(value, str) else value
    names = [one.strip() for one in given if one.strip()]
    if not names:
        return {}
    return {"forwarded_from": _ANYBODY if "*" in names else names}


_ANYBODY: Final = ["0.0.0.0/0", "::/0", "unix"]


def _proxy_from(_value: Any, values: Values) -> Mapping[str, object]:
    """Return the peers that send a PROXY header: those of ``proxy_allow_ips``, or of gunicorn's default."""
    names = values.get("proxy_allow_ips")
    found = _forwarded_from("127.0.0.1,::1" if names is None else names, values)
    return {"proxy_from": found["forwarded_from"]} if found else {}


def _client_ca(value: Any, values: Values) -> Mapping[str, object]:
    """Return whose certificates clients must show; ``cert_reqs`` 0 asks for none."""
    return {"tls_client_ca": value} if values.get("cert_reqs") else {}


_COUNTERPARTS: Final[Mapping[str, Counterpart]] = {
    "wsgi_app": _target,
    "bind": _bind,
    "backlog": _same("backlog"),
    "workers": _same("workers"),
    "timeout": _unless_zero("request_timeout"),
    "graceful_timeout": _same("graceful_timeout"),
    "keepalive": _park_timeout,
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


_OTHER_DEFAULTS: Final[Mapping[str, str]] = {
    "timeout": "not in the file; gunicorn's default is 30 seconds, and request_timeout is off by default",
    "workers": "not in the file; gunicorn's default is 1, and here the default follows the CPUs",
    "forwarded_allow_ips": "not in the file; gunicorn believes 127.0.0.1 and ::1 by default, and "
    "forwarded_from believes no proxy by default",
}
"""Settings whose defaults differ so much that a file without them has another meaning here."""


def _arguments(value: Any) -> str:
    arguments = str(value).partition("(")[2].rstrip(") ")
    return "the function is called without arguments here" if arguments else ""


def _no_parking(value: Any) -> str:
    return "" if value else "an idle connection holds no worker here, and is closed after a second"


def _worker_class(value: Any) -> str:
    if value in {"sync", "gthread"}:
        return ""
    return f"{value} is not served: each worker of prefork serves one request at a time, of a WSGI application"


def _threads(value: Any) -> str:
    if value == 1:
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


def _protocol(value: Any) -> str:
    return "" if value in {"http", "h1"} else f"{value} is not served: HTTP/1.1 alone is"


def _everybody(value: Any) -> str:
    return "this believes everybody; name the networks of your proxies" if "*" in value else ""


def _hook(name: str) -> str:
    return f"the hook is {name}() of a server class, such as class Server(prefork.wsgi.WSGIServer)"


_IN_PROGRAM: Final = "a tls_context of a server class, an ssl.SSLContext, says this"

_STRICT: Final = "such a request is refused here, as another program may read it in another way"

_REMARKS: Final[Mapping[str, str | Callable[[Any], str]]] = {
    "wsgi_app": _arguments,
    "keepalive": _no_parking,
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
    "header_map": "fields with an underscore in their names do not reach the application",
    "strip_header_spaces": _STRICT,
    "permit_unconventional_http_method": _STRICT,
    "permit_unconventional_http_version": _STRICT,
    "casefold_http_method": _STRICT,
    "protocol": _protocol,
    "http_protocols": _protocol,
    "root_path": "a WSGI middleware sets SCRIPT_NAME",
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
