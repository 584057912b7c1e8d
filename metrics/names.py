"""Every metric, once: the table that ``families`` fills with values (a leaf).

docs/METRICS.md shows it. The table needs neither the scoreboard nor prometheus_client, so that the
documents can be made without them.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec


class Type(enum.StrEnum):
    """The type of a metric, in the words of the Prometheus exposition format."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"
    INFO = "info"
    """A gauge that is always 1, and whose labels are the information."""


class Metric(msgspec.Struct, frozen=True):
    """One line of the table.

    name: as a query writes it, with ``_total`` or ``_info``. unit: the base unit of the values, in
    which the name ends; "" for a plain number. labels: the names of the labels, in the order of the
    values that ``families`` gives. help: a sentence. opt_in: whether only a scrape that asks for it
    by name gets it, because it costs much.
    """

    name: str
    type: Type
    unit: str
    labels: tuple[str, ...]
    help: str
    opt_in: bool = False


def _gauge(name: str, help_: str, *labels: str, unit: str = "", opt_in: bool = False) -> Metric:
    return Metric(name, Type.GAUGE, unit, labels, help_, opt_in)


def _counter(name: str, help_: str, *labels: str, unit: str = "") -> Metric:
    return Metric(name, Type.COUNTER, unit, labels, help_)


def _histogram(name: str, help_: str) -> Metric:
    return Metric(name, Type.HISTOGRAM, "seconds", (), help_)


def _info(name: str, help_: str, *labels: str) -> Metric:
    return Metric(name, Type.INFO, "", labels, help_)


_ABOUT_THE_POOL = (
    _info(
        "prefork_build_info",
        "Always 1; the versions of prefork and of Python that serve.",
        *("version", "python_version"),
    ),
    _gauge(
        "prefork_start_time_seconds",
        "Unix time at which serve_forever() was called.",
        unit="seconds",
    ),
    _gauge(
        "prefork_last_tick_timestamp_seconds",
        "Unix time of the master's last tick; a healthy master ticks at least every 0.5 s.",
        unit="seconds",
    ),
    _gauge(
        "prefork_config_last_reload_successful",
        "0 if the last reload failed, else 1.",
    ),
    _gauge(
        "prefork_config_last_reload_success_timestamp_seconds",
        "Unix time of the last reload that succeeded; 0 if there was none.",
        unit="seconds",
    ),
    _counter("prefork_reloads_total", "Reloads by result: ok, failed.", "result"),
    _gauge(
        "prefork_workers",
        "Workers by state: starting, idle, busy, retiring.",
        "state",
    ),
    _gauge("prefork_workers_target", "Workers wanted now: the floor, plus what load has added."),
    _gauge(
        "prefork_workers_min",
        "The floor, the least number of workers: the setting workers, as TTIN and TTOU have moved it.",
    ),
    _gauge(
        "prefork_workers_max",
        "The largest number of workers: max_children; where workers = auto and max_children is not given, it "
        "follows the CPUs.",
    ),
    _gauge(
        "prefork_usable_cpus",
        "CPUs that affinity and cgroup quota allow, as the master saw them within the last second; 0 unless "
        "workers = auto.",
    ),
    _gauge(
        "prefork_pool_utilization_ratio",
        "The share of ready workers that are busy, 0 to 1; 0 while no worker is ready.",
        unit="ratio",
    ),
    _gauge(
        "prefork_workers_needed",
        "Workers that the load of the last minute needs: arrivals per second x mean service time / 0.7; arrivals are "
        "the requests that were taken, and the growth of the accept queues.",
    ),
    _gauge(
        "prefork_pool_saturated",
        "1 while every worker is busy and clients wait, for ten seconds or more, by cause: workers_compute (there "
        "are too few), workers_wait (mostly for connections that stay open), handlers_wait (within requests, in a "
        "pool that parks idle connections).",
        "cause",
    ),
    _counter(
        "prefork_max_workers_reached_total",
        "How often the pool wanted to grow and already had max_children workers.",
    ),
    _counter("prefork_growth_refused_total", "Workers that were not added because of low memory."),
    _counter(
        "prefork_scale_events_total",
        "Changes of the target by direction (up, down) and source (signal, load, box: the CPUs or memory of the machine or container).",
        *("direction", "source"),
    ),
    _counter(
        "prefork_worker_starts_total",
        "Workers forked, by reason: started, grew, respawned, recycled, reloaded.",
        "reason",
    ),
    _counter(
        "prefork_worker_exits_total",
        "Workers that ended, by cause: retired, scaled_down, reloaded, max_requests, max_lifetime, max_memory, "
        "request_timeout, boot_timeout, boot_error, exited, killed, oom_killed, orphaned, stuck.",
        "cause",
    ),
    _histogram(
        "prefork_worker_start_duration_seconds",
        "Time from the fork of a worker until it was ready.",
    ),
    _counter(
        "prefork_memory_returned_bytes_total",
        "Memory that workers have returned to the system while they had nothing to do.",
        unit="bytes",
    ),
    _counter("prefork_spawn_failures_total", "Forks that the kernel refused."),
    _counter("prefork_hook_failures_total", "Hooks that raised in the master."),
    _gauge(
        "prefork_listeners_closed",
        "Listeners that let no client in although the pool serves, because a worker has closed them for all.",
    ),
    _counter(
        "prefork_metrics_process_restarts_total", "How often the metrics process was replaced."
    ),
)

_ABOUT_LISTENERS = (
    _gauge(
        "prefork_listen_queue_length",
        "Connections that wait to be accepted (the accept queue); absent where there is no such queue.",
        "listener",
    ),
    _gauge(
        "prefork_listen_queue_limit",
        "Connections that may wait: the backlog, as bounded by the kernel.",
        "listener",
    ),
    _gauge(
        "prefork_socket_receive_queue_bytes",
        "Bytes that wait in a datagram socket, with the kernel's overhead; "
        "for a Unix datagram socket the length of the first datagram only.",
        "listener",
        unit="bytes",
    ),
    _counter(
        "prefork_socket_receive_drops_total",
        "Datagrams that the kernel has dropped since the UDP socket was made, mostly because its buffer was full.",
        "listener",
    ),
    _counter(
        "prefork_accept_errors_total", "Failed attempts to take a request, such as by EMFILE."
    ),
    _counter(
        "prefork_datagrams_truncated_total",
        "Datagrams longer than max_packet_size, which were cut.",
    ),
)

_ABOUT_REQUESTS = (
    _counter(
        "prefork_requests_total",
        "Requests by outcome: ok, error (it raised), rejected (by verify_request() or by the edge), "
        "client_timeout (the client kept the handler waiting for longer than client_timeout), cancelled (it was "
        "asked to end), timeout (request_timeout ended its worker), aborted (its worker died of something else).",
        "outcome",
    ),
    _counter(
        "prefork_requests_cancelled_total",
        "Requests that were asked to end and did, by reason: soft_timeout, cpu_timeout, client_gone, command (prefork "
        "cancel), handler (it raised RequestCancelled itself), urgent (urgent data).",
        "reason",
    ),
    _counter(
        "prefork_rejected_requests_total",
        "Requests that were rejected, by reason: verify (verify_request() returned False), proxy (no PROXY header, "
        "or a malformed one), address (the rules allow and deny), tls (the handshake failed), authentication, "
        "throttled (too many failures of this client), timeout (edge_timeout), gone (the client went away), "
        "queue_wait (it had waited for longer than max_queue_wait), per_client (the client held max_per_client workers), "
        "request (it was malformed, too large or too slow, so that the handler has refused it).",
        "reason",
    ),
    _counter(
        "prefork_http_responses_total",
        "Responses of WSGI applications, and of the server in their place, by the method of the request (OTHER for "
        "an unusual one) and the class of the status (2xx to 5xx).",
        *("method", "status"),
    ),
    _histogram(
        "prefork_request_duration_seconds",
        "Time from taking a request to its end; requests that ended with their worker are left out.",
    ),
    _gauge("prefork_requests_in_progress", "Requests in hand; a worker with threads has several."),
    _counter("prefork_slow_requests_total", "Requests that took longer than slow_request."),
    _histogram(
        "prefork_request_queue_wait_seconds",
        "Time that a request waited in the kernel before a worker took it. Sampled: "
        "one request of several, of TCP, UDP and Unix datagrams.",
    ),
)

_ABOUT_TLS = (
    _counter(
        "prefork_tls_handshakes_total",
        "TLS handshakes by version (none for one that failed) and result: full, resumed (of an earlier session, also "
        "in another worker), failed.",
        *("version", "result"),
    ),
    _counter(
        "prefork_tls_handshake_seconds_total",
        "Time that the handshakes took which succeeded, waiting for the client included.",
        unit="seconds",
    ),
    _gauge(
        "prefork_tls_certificate_days_left",
        "Days until a certificate of the pool ends, by its file; negative for one that has ended.",
        "file",
    ),
)

_ABOUT_PARKED = (
    _gauge("prefork_parked_connections", "Idle connections that the lot holds now."),
    _counter(
        "prefork_connections_parked_total",
        "Connections that workers gave to the lot; a connection counts each time.",
    ),
    _counter(
        "prefork_connections_resumed_total",
        "Parked connections that were given to a worker because their clients spoke.",
    ),
    _counter(
        "prefork_parked_connections_closed_total",
        "Connections that were closed in place of being kept: evicted (there were max_parked), timed_out "
        "(park_timeout), left (by the client), stopped (by a stop), lost (no worker could be reached), refused "
        "(the lot did not take them).",
        "reason",
    ),
    _counter(
        "prefork_lot_restarts_total",
        "Lot processes forked after the first; each costs the connections that were parked.",
    ),
)

_ABOUT_SLOTS = (
    _info(
        "prefork_worker_info",
        "Always 1; the worker that is in the slot.",
        "slot",
        "pid",
        "generation",
    ),
    _gauge("prefork_worker_up", "1 if the slot has a worker, else 0.", "slot"),
    _gauge(
        "prefork_worker_start_time_seconds",
        "Unix time at which the slot's worker was forked.",
        "slot",
        unit="seconds",
    ),
    _counter("prefork_worker_requests_total", "Requests of the slot, of all outcomes.", "slot"),
    _counter("prefork_worker_restarts_total", "Workers of the slot after the first.", "slot"),
    _counter(
        "prefork_worker_busy_seconds_total",
        "Time with a request in hand, added at the end of each request; its rate is the utilization.",
        "slot",
        unit="seconds",
    ),
    _counter(
        "prefork_worker_cpu_seconds_total",
        "CPU time of all workers that the slot has had, by mode: user, system.",
        *("slot", "mode"),
        unit="seconds",
    ),
    _gauge(
        "prefork_worker_resident_memory_bytes",
        "Resident memory (RSS); pages shared with the master count in each worker, so do not add these up.",
        "slot",
        unit="bytes",
    ),
    _gauge(
        "prefork_worker_open_fds",
        "Open file descriptors; absent where they may not be read.",
        "slot",
    ),
    _counter(
        "prefork_worker_context_switches_total",
        "Context switches of all workers that the slot has had, by kind: voluntary (the worker waited), "
        "involuntary (it was preempted).",
        *("slot", "kind"),
    ),
    _gauge(
        "prefork_worker_unique_memory_bytes",
        "Private memory (USS): what is freed when the worker ends, and what max_memory bounds.",
        "slot",
        unit="bytes",
        opt_in=True,
    ),
    _gauge(
        "prefork_worker_proportional_memory_bytes",
        "Memory with each shared page divided among its users (PSS); the sum is what the pool uses.",
        "slot",
        unit="bytes",
        opt_in=True,
    ),
)

_ABOUT_THE_MASTER = (
    _gauge("process_virtual_memory_bytes", "Virtual memory of the master in bytes.", unit="bytes"),
    _gauge(
        "process_resident_memory_bytes", "Resident memory of the master in bytes.", unit="bytes"
    ),
    _gauge(
        "process_start_time_seconds",
        "Unix time at which the master's process started.",
        unit="seconds",
    ),
    _counter("process_cpu_seconds_total", "CPU time of the master in seconds.", unit="seconds"),
    _gauge("process_open_fds", "Open file descriptors of the master."),
    _gauge("process_max_fds", "File descriptors that the master may have open."),
    _gauge(  # a gauge in prometheus_client, too, though it is an info
        "python_info",
        "Always 1; the Python that runs the pool.",
        *("version", "implementation", "major", "minor", "patchlevel"),
    ),
)

METRICS: Final = {
    metric.name: metric
    for group in (
        _ABOUT_THE_POOL,
        _ABOUT_LISTENERS,
        _ABOUT_REQUESTS,
        _ABOUT_TLS,
        _ABOUT_PARKED,
        _ABOUT_SLOTS,
        _ABOUT_THE_MASTER,
    )
    for metric in group
}
"""The table, by name, in the order of the output and of the documentation."""

TLS: Final = tuple(metric.name for metric in _ABOUT_TLS)
"""The metrics that only a pool with TLS has."""

PARKED: Final = tuple(metric.name for metric in _ABOUT_PARKED)
"""The metrics that only a pool with a lot has."""
