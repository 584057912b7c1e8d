"""Every metric, once: the table that the collector fills and docs/METRICS.md shows (leaf).

It knows neither the scoreboard nor prometheus_client, so that commands and documents can read it.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec


class Type(enum.StrEnum):
    """What a metric is, in the words of Prometheus' exposition."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"
    INFO = "info"
    """A gauge of 1 whose labels say something."""


class Metric(msgspec.Struct, frozen=True):
    """One line of the table.

    name: as a query writes it, ``_total`` and ``_info`` included. unit: the base unit in which it
    is shown, which the name ends in, "" for a plain number. labels: their names, in the order of
    the values that the collector gives. help: one sentence.
    opt_in: costs so much that only who asks for it by name gets it.
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
        "1; which prefork and which Python serve.",
        *("version", "python_version"),
    ),
    _gauge(
        "prefork_start_time_seconds",
        "Unix time at which serve_forever() began.",
        unit="seconds",
    ),
    _gauge(
        "prefork_last_tick_timestamp_seconds",
        "Unix time at which the master last looked around, which it does at least every 0.5 s.",
        unit="seconds",
    ),
    _gauge(
        "prefork_config_last_reload_successful",
        "0 while the last reload is one that failed, else 1.",
    ),
    _gauge(
        "prefork_config_last_reload_success_timestamp_seconds",
        "Unix time of the last reload that succeeded, 0 for none.",
        unit="seconds",
    ),
    _counter("prefork_reloads_total", "Reloads by result: ok, failed.", "result"),
    _gauge(
        "prefork_workers",
        "Workers by state: starting, idle, busy, retiring.",
        "state",
    ),
    _gauge(
        "prefork_workers_target", "Workers wanted now: the floor and what load has added to it."
    ),
    _gauge("prefork_workers_min", "Workers to keep at least: the setting workers and TTIN, TTOU."),
    _gauge("prefork_workers_max", "Workers that may live at most: the setting max_children."),
    _gauge(
        "prefork_pool_utilization_ratio",
        "Busy workers among those that take requests, 0 to 1; 0 while there is none.",
        unit="ratio",
    ),
    _counter(
        "prefork_max_workers_reached_total",
        "Times the pool wanted to grow and had max_children workers.",
    ),
    _counter(
        "prefork_growth_refused_total", "Workers that were not added for want of free memory."
    ),
    _counter(
        "prefork_scale_events_total",
        "Changes of the target by direction (up, down) and source (signal, load).",
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
        "request_timeout, boot_timeout, boot_error, exited, killed, oom_killed, orphaned.",
        "cause",
    ),
    _histogram("prefork_worker_start_duration_seconds", "Time from a worker's fork until ready."),
    _counter("prefork_spawn_failures_total", "Forks that the kernel refused."),
    _counter("prefork_hook_failures_total", "Hooks that raised in the master."),
    _counter(
        "prefork_metrics_process_restarts_total", "Times the metrics process had to be replaced."
    ),
)

_ABOUT_LISTENERS = (
    _gauge(
        "prefork_listen_queue_length",
        "Connections that wait to be accepted: the accept queue. Not known of every listener.",
        "listener",
    ),
    _gauge(
        "prefork_listen_queue_limit",
        "Connections that may wait: the backlog, as the kernel has bounded it.",
        "listener",
    ),
    _gauge(
        "prefork_socket_receive_queue_bytes",
        "What waits in a datagram socket, with the kernel's overhead; "
        "of a Unix datagram socket the kernel tells the first datagram only.",
        "listener",
        unit="bytes",
    ),
    _counter(
        "prefork_socket_receive_drops_total",
        "Datagrams that the kernel dropped since the UDP socket was made, for want of room above all.",
        "listener",
    ),
    _counter("prefork_accept_errors_total", "Tries to take a request that failed, such as EMFILE."),
    _counter(
        "prefork_datagrams_truncated_total",
        "Datagrams that were longer than max_packet_size and were cut.",
    ),
)

_ABOUT_REQUESTS = (
    _counter(
        "prefork_requests_total",
        "Requests by outcome: ok, error (it raised), rejected (by verify_request()), timeout (request_timeout "
        "ended its worker), aborted (its worker died of something else).",
        "outcome",
    ),
    _histogram(
        "prefork_request_duration_seconds",
        "Time from taking a request to its end; not of those that ended with their worker.",
    ),
    _gauge("prefork_requests_in_progress", "Requests in hand; a worker with threads has several."),
    _counter("prefork_slow_requests_total", "Requests that took longer than slow_request."),
    _histogram(
        "prefork_request_queue_wait_seconds",
        "Time a request waited in the kernel before it was taken. Sampled: "
        "only of requests of which the kernel tells, and not of each of them.",
    ),
)

_ABOUT_SLOTS = (
    _info("prefork_worker_info", "1; which worker is in the slot.", "slot", "pid", "generation"),
    _gauge("prefork_worker_up", "1 while the slot has a worker, else 0.", "slot"),
    _gauge(
        "prefork_worker_start_time_seconds",
        "Unix time at which the slot's worker was forked.",
        "slot",
        unit="seconds",
    ),
    _counter("prefork_worker_requests_total", "Requests of all outcomes.", "slot"),
    _counter("prefork_worker_restarts_total", "Workers of the slot after the first.", "slot"),
    _counter(
        "prefork_worker_busy_seconds_total",
        "Time with requests in hand, counted at the end of each; its rate is the utilisation.",
        "slot",
        unit="seconds",
    ),
    _counter(
        "prefork_worker_cpu_seconds_total",
        "CPU time of the slot's workers, those that ended included, by mode: user, system.",
        *("slot", "mode"),
        unit="seconds",
    ),
    _gauge(
        "prefork_worker_resident_memory_bytes",
        "Resident memory (RSS). Pages shared with the master count in every worker: a sum says too much.",
        "slot",
        unit="bytes",
    ),
    _gauge(
        "prefork_worker_open_fds",
        "Open file descriptors; absent where the system does not let us look.",
        "slot",
    ),
    _counter(
        "prefork_worker_context_switches_total",
        "Context switches of the slot's workers, those that ended included, by kind: voluntary (it waited), "
        "involuntary (it wanted to go on).",
        *("slot", "kind"),
    ),
    _gauge(
        "prefork_worker_unique_memory_bytes",
        "Private memory (USS): what comes back when the worker ends, and what max_memory bounds.",
        "slot",
        unit="bytes",
        opt_in=True,
    ),
    _gauge(
        "prefork_worker_proportional_memory_bytes",
        "Memory with shared pages divided among their users (PSS): its sum is what the pool takes.",
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
    _gauge("process_start_time_seconds", "Unix time at which the master began.", unit="seconds"),
    _counter("process_cpu_seconds_total", "CPU time of the master in seconds.", unit="seconds"),
    _gauge("process_open_fds", "Open file descriptors of the master."),
    _gauge("process_max_fds", "File descriptors that the master may have open."),
    _gauge(  # prometheus_client gives it so; the text is that of an info
        "python_info",
        "1; which Python this is.",
        *("version", "implementation", "major", "minor", "patchlevel"),
    ),
)

METRICS: Final = {
    metric.name: metric
    for group in (
        _ABOUT_THE_POOL,
        _ABOUT_LISTENERS,
        _ABOUT_REQUESTS,
        _ABOUT_SLOTS,
        _ABOUT_THE_MASTER,
    )
    for metric in group
}
"""The table, by name, in the order of the output and of the documentation."""
