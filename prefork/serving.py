"""Serving: from servers to their running master, and back.

What ``serve_forever()`` does, for one server or for several of them: which process serves, and what
the master is given. The mix-in stands above this module, the Master below. ``runs.py`` keeps which
server is being served, and ``without_workers.py`` serves without a pool.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import setproctitle

from prefork.edge.edge import edge_of
from prefork.edge.watch import FileWatch
from prefork.host.endpoint import ENDPOINTS, Endpoint, is_same_place
from prefork.host.handover import Inventory, MasterState
from prefork.host.process import process
from prefork.master.lot_process import Links
from prefork.master.master import Caller, Master
from prefork.master.signals import SignalCounts, handled
from prefork.master.wakeup import Wakeup
from prefork.metrics import slots
from prefork.reloading import binding, caretaker, end_of_trial, live_files, trial
from prefork.runs import RUN, Served, announcements_of
from prefork.without_workers import serve_without_workers
from prefork.workers import forks, log
from prefork.workers.credentials import credentials_of
from prefork.workers.errors import SettingsError
from prefork.workers.files import has_proc
from prefork.workers.kernel import refuse_without_calls
from prefork.workers.listener import Listener
from prefork.workers.pool.before_fork import refuse_threads
from prefork.workers.settings import Settings
from prefork.workers.spec import WorkerSpec
from prefork.workers.worker.clients import log_timeouts
from prefork.workers.worker.side import WorkerSide
from prefork.workers.worker.side import enter as enter_worker

caretaker.stand_by()
binding.stand_by()
live_files.stand_by()
end_of_trial.stand_by()


def serve(
    all_served: Sequence[Served],
    settings: Settings,
    poll_interval: float | None,
    call_hook: Callable[..., bool],
) -> None:
    """Serve until ``shutdown()`` or a signal. The first server's hooks and actions are called.

    call_hook: called as ``call_hook(name, *arguments)``; returns whether the program has the hook.
    """
    if (inventory := process.inventory) is not None:
        _refuse_what_cannot_follow(settings, inventory)
        trial.end_of_trial(settings)
    process.systemd_sockets.take()
    with contextlib.ExitStack() as ends:
        for one in all_served:
            one.run.begin()
            ends.callback(_end, one)
        if not any(one.run.shutdown_asked for one in all_served):
            if settings.workers == 0:
                serve_without_workers(all_served, settings, poll_interval)
            else:
                _serve_with_pool(all_served, settings, poll_interval, call_hook)


def _end(one: Served) -> None:
    try:
        if one.run.end():
            one.behind.server_close()
    finally:
        one.run.stopped.set()


def _serve_with_pool(
    all_served: Sequence[Served],
    settings: Settings,
    poll_interval: float | None,
    call_hook: Callable[..., bool],
) -> None:
    """Serve with a pool of workers. Signals are handled from the first step to the last one."""
    refuse_without_calls()
    process.note_children()
    previous = process.handover
    wakeup = Wakeup(None if previous is None else previous.wakeup)
    signals = SignalCounts()
    serving_process = os.getpid()
    links: Links | None = None
    try:
        with handled(signals, wakeup):
            _warn_without_proc()
            if previous is not None:
                settings = _fitting(settings, previous)
            with contextlib.closing(_lease(settings)) as user_metrics:
                links = _links(all_served, previous)
                caller = _caller(all_served, poll_interval)
                spec = _spec_of_workers(
                    all_served,
                    settings,
                    call_hook,
                    user_metrics,
                    wakeup,
                    links=links,
                    poll_interval=caller.poll_interval,
                )
                master = Master(spec, wakeup, caller, previous, signals=signals, links=links)
                _run(all_served, master)
    finally:
        # While a handover is pending, the next attempt needs pipe and links. A child that leaves a
        # hook by an exception has let go of them.
        if process.handover is None and os.getpid() == serving_process:
            wakeup.close()
            if links is not None:
                links.close()


def _links(all_served: Sequence[Served], previous: MasterState | None) -> Links:
    """Return the links between workers and lot: those of the earlier image, and new ones."""
    lot = None if previous is None else previous.lot
    return Links([one.listener for one in all_served], () if lot is None else lot.links)


def _run(all_served: Sequence[Served], master: Master) -> None:
    try:
        for one in all_served:
            one.run.master = master
        if any(one.run.shutdown_asked for one in all_served):
            master.ask_shutdown()
        master.run()
    finally:
        for one in all_served:
            with one.run.lock:
                one.run.master = None
        # While a handover is pending, the next attempt needs these descriptors.
        if process.handover is None and master.pool.link.is_in_master:
            master.close()


def _warn_without_proc() -> None:
    if not has_proc():
        log.event(
            logging.WARNING,
            "master",
            "/proc is not mounted: the pool serves, but it cannot be reloaded, and prefork status "
            "and the other commands cannot find it",
        )


def _caller(all_served: Sequence[Served], poll_interval: float | None) -> Caller:
    """Return what the master's loop does for the servers."""

    def publish_pids(pids: set[int]) -> None:
        for one in all_served:
            one.server.active_children = pids

    return Caller(
        service_actions=all_served[0].server.service_actions,
        publish_pids=publish_pids,
        poll_interval=0.5 if poll_interval is None else max(0.01, poll_interval),
        wants_reload=_wants_reload(all_served),
        announcements=announcements_of(all_served),
    )


def _wants_reload(all_served: Sequence[Served]) -> Callable[[float], str]:
    """Return what looks for certificates that were renewed."""
    edges = [edge_of(one.server) for one in all_served]
    watch = FileWatch({k: v for edge in edges if edge is not None for k, v in edge.watched.items()})
    return lambda now: "tls_watch" if watch.changed(now) else ""


def _spec_of_workers(
    all_served: Sequence[Served],
    settings: Settings,
    call_hook: Callable[..., bool],
    user_metrics: slots.Lease,
    wakeup: Wakeup,
    *,
    links: Links,
    poll_interval: float,
) -> WorkerSpec:
    """Return what every worker of these servers is made from."""
    listeners = [one.listener for one in all_served]
    return WorkerSpec(
        settings=settings,
        listeners=listeners,
        wake=wakeup.workers_fd,
        credentials=credentials_of(settings),
        title=_title(settings, listeners),
        hooks=_with_metrics(call_hook, user_metrics),
        enter=_entrance_to(all_served, user_metrics, has_timeout=bool(settings.client_timeout)),
        metrics_dir=user_metrics.directory,
        links=links.for_workers,
        poll_interval=poll_interval,
    )


def _entrance_to(
    all_served: Sequence[Served], user_metrics: slots.Lease, *, has_timeout: bool
) -> Callable[[WorkerSide], None]:
    """Return what a worker does before code of the program runs in it."""
    # Where ForkingMixIn is behind, its children have to be collected by the worker.
    chores = [
        one.server.collect_children for one in all_served if hasattr(one.behind, "collect_children")
    ]

    def enter(side: WorkerSide) -> None:
        user_metrics.enter(side.info.slot)
        enter_worker(side)
        for one in all_served:
            one.run.side = side
            vars(one.server)[RUN] = one.run
            one.server.active_children = None
            if has_timeout:
                log_timeouts(one.server, str(side.info))
        for chore in chores:
            side.add_chore(chore)
        forks.let_go_of_others([one.server for one in all_served])

    return enter


def _with_metrics(call_hook: Callable[..., bool], user_metrics: slots.Lease) -> Callable[..., bool]:
    def call(name: str, *arguments: Any) -> bool:
        if name == "worker_died":
            user_metrics.vacate(arguments[0].slot)  # before the next worker has that slot
        return call_hook(name, *arguments)

    return call


def _lease(settings: Settings) -> slots.Lease:
    """Begin to keep the application's own metrics by slot; log those that were made too early."""
    user_metrics = slots.lease(settings.metrics_dir, settings.max_children)
    if early := slots.made_before():
        log.event(
            logging.WARNING,
            "master",
            "these metrics were made before prefork.metrics.slots.enable() was called and "
            "are not kept by slot: call it before prometheus_client is imported",
            metrics=" ".join(early),
        )
    return user_metrics


def _refuse_what_cannot_follow(settings: Settings, inventory: Inventory) -> None:
    """In a trial, refuse settings with which the new code could not take over from the master."""
    if settings.workers == 0:
        allowed = "a running pool cannot be reloaded to serve without workers; restart it"
        raise SettingsError("workers", 0, "settings", allowed)
    refuse_threads(settings)
    for setting in ENDPOINTS:
        wanted, has = getattr(settings, setting), inventory.endpoints.get(setting)
        if wanted is not None and (has is None or not is_same_place(setting, wanted, has)):
            Endpoint(setting, wanted).close()


def _fitting(settings: Settings, previous: MasterState) -> Settings:
    """Keep ``max_children`` as it was: it is the size of the scoreboard, which stays.

    A number that follows the CPUs moves within that size, and is nothing to warn of.
    """
    size = previous.pool.slots
    if settings.max_children == size:
        return settings
    if not settings.automatic.issuperset(("workers", "max_children")):
        log.event(
            logging.WARNING,
            "master",
            "max_children stays until a restart",
            max_children=size,
            wanted=settings.max_children,
        )
    spare = settings.min_spare if settings.min_spare is None else min(settings.min_spare, size)
    return msgspec.structs.replace(
        settings, max_children=size, workers=min(settings.workers, size), min_spare=spare
    )


def _title(settings: Settings, listeners: list[Listener]) -> tuple[str, str]:
    """Return what stands before and after the slot in a worker's process title."""
    # Has setproctitle move the environment now, once, rather than in each worker (some 100 KiB).
    setproctitle.getproctitle()
    name = f" [{settings.name}]" if settings.name else ""
    return "prefork: worker ", f"{name} {' '.join(map(str, listeners))}"
