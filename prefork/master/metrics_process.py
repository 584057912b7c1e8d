"""The metrics process as the master keeps it: forked, watched, replaced, and ended last (master).

The process is supervised (supervised.py), and writes its signs of life to an eventfd. The addresses on
which it answers belong to the master, so that a new process, and a new image of the master, go on where
the previous one was: one for HTTP (the setting ``metrics``), one for HAProxy's agent check (``agent``).
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import threading
from collections.abc import Mapping

from prefork.host.endpoint import ENDPOINTS, Endpoint, is_same_place
from prefork.host.handover import EndpointState, MetricsState
from prefork.host.process import process
from prefork.master.metrics_main import LEAVE, MetricsSpec, live
from prefork.master.supervised import END_BOUND, SILENCE, START_INTERVAL, SupervisedProcess
from prefork.workers import forks, system
from prefork.workers.pool.pool import Pool
from prefork.workers.scoreboard import PoolField
from prefork.workers.settings import Settings
from prefork.workers.spec import WorkerSpec
from prefork.workers.system import Child, System


class MetricsProcess:
    """Keeps the metrics process of one pool. Where neither ``metrics`` nor ``agent`` is set there is none.

    The constructor binds the addresses. It raises SettingsError for a text that is no address, and
    BindError for an address that cannot be bound. poll: where the master waits; the end of the
    process wakes it there.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        poll: select.epoll,
        *,
        previous: MetricsState | None = None,
        system: System = system,
    ) -> None:
        self._spec = spec
        self._process = SupervisedProcess("metrics", LEAVE, poll, system)
        self._forking: int | None = None
        self._replacing = False
        """Whether the process is that of an earlier image, which has to leave."""
        self._beat = -1
        with forks.lock:
            self.endpoints = _endpoints(spec.settings, previous)
            """What the metrics process answers on, by the key of the setting; empty where there is none."""
            if self.endpoints:
                self._beat = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._on_list = forks.add(self._let_go_in_child)
        if previous is not None and previous.child is not None:
            self._replacing = True
            self._process.hold(previous.child)

    def replace_previous(self, now: float) -> None:
        """Ask the metrics process of an earlier image to leave, once this image has adopted all.

        Until then it answers: if this image fails, the next attempt takes some time. Until the next
        process runs, clients wait in the queue of the socket.
        """
        process = self._process
        if process.child is not None and self._replacing:
            # It gives no sign of life any more. Where it does not leave, it is killed END_BOUND
            # from now.
            process.record = process.record.heard(now - SILENCE + END_BOUND)
            process.ask_to_leave()

    def handover_state(self) -> MetricsState | None:
        """Return what the next image of the master needs to go on answering."""
        if not self.endpoints:
            return None
        folder = self._spec.metrics_dir
        return MetricsState(
            {key: EndpointState(one.address, one.fd) for key, one in self.endpoints.items()},
            self._spec.settings.agent_mode,
            self._process.child,
            title=_title(self._spec, self.addresses),
            metrics_dir=None if folder is None else os.fsencode(folder),
            umask=self._spec.settings.umask,
            credentials=self._spec.credentials,
        )

    @property
    def addresses(self) -> dict[str, str]:
        """Where the metrics process listens, by the key of the setting, with real ports."""
        return {setting: one.address for setting, one in self.endpoints.items()}

    def _let_go_in_child(self) -> None:
        # A child has the thread that has forked it, and with it the thread's number. The child of
        # the thread that is forking the metrics process is the metrics process, which keeps these.
        if self.endpoints and self._forking != threading.get_ident():
            forks.close((*(one.fd for one in self.endpoints.values()), self._beat))

    def tick(self, pool: Pool, now: float) -> None:
        """Look after the metrics process, without waiting. now: the master's clock."""
        if not self.endpoints:
            self._collect(pool)  # a reload that has switched metrics off leaves one to collect
            return
        self._hear(now)
        self._collect(pool)
        start = functools.partial(self._start, pool)
        self._process.tick(now, start, interval=START_INTERVAL)

    def stop(self) -> None:
        """End the metrics process and collect it. Waits END_BOUND and a moment at most."""
        self._process.stop()

    def close(self) -> None:
        """Release the addresses. The process has ended by now."""
        with forks.lock:
            forks.remove(self._on_list)
            if self.endpoints:
                for endpoint in self.endpoints.values():
                    endpoint.close()
                os.close(self._beat)
                self.endpoints = {}

    def _hear(self, now: float) -> None:
        if self._process.child is not None and self._drain_beat():
            self._process.note_sign_of_life(now, **_facts(self.addresses))

    def _drain_beat(self) -> bool:
        with contextlib.suppress(BlockingIOError):
            return os.eventfd_read(self._beat) > 0
        return False

    def _collect(self, pool: Pool) -> None:
        subject = str(self._process)
        if (status := self._process.collect()) is None:
            return
        pool.board.set_pool(PoolField.METRICS_PID, 0)
        replaced, self._replacing = self._replacing, False
        if not replaced:
            self._process.log_end(subject, status)

    def _start(self, pool: Pool) -> None:
        self._drain_beat()  # signs of life of the previous process
        spec = MetricsSpec(
            worker_spec=self._spec,
            link=pool.link,
            listeners={setting: one.fd for setting, one in self.endpoints.items()},
            beat=self._beat,
            title=_title(self._spec, self.addresses),
        )
        child = self._fork(spec)
        if child is not None:
            pool.board.set_pool(PoolField.METRICS_PID, child.pid)
            pool.board.count_pool(PoolField.METRICS_STARTS)

    def _fork(self, spec: MetricsSpec) -> Child | None:
        self._forking = threading.get_ident()
        try:
            return self._process.fork(functools.partial(live, spec))
        finally:
            self._forking = None


def _title(spec: WorkerSpec, addresses: Mapping[str, str]) -> str:
    """Return the title of the process: its name, and where it answers."""
    name = [f"[{spec.settings.name}]"] if spec.settings.name else []
    agent = ["agent", addresses["agent"]] if "agent" in addresses else []
    metrics = [addresses["metrics"]] if "metrics" in addresses else []
    return " ".join(["prefork: metrics", *name, *metrics, *agent])


def _facts(addresses: Mapping[str, str]) -> dict[str, str]:
    """Return what the log says of where the process answers."""
    names = {"metrics": "address", "agent": "agent"}
    return {names[setting]: address for setting, address in addresses.items()}


def _endpoints(settings: Settings, previous: MetricsState | None) -> dict[str, Endpoint]:
    """Return where to answer, by setting. Where one address cannot be had, what was bound here is closed again."""
    kept = {} if previous is None else previous.endpoints
    found: dict[str, Endpoint] = {}
    new: list[Endpoint] = []
    try:
        for setting in ENDPOINTS:
            endpoint = _endpoint(setting, getattr(settings, setting), kept.get(setting))
            if endpoint is not None:
                found[setting] = endpoint
                new += [endpoint] if endpoint.is_new else []
    except BaseException:
        for endpoint in new:
            endpoint.close()
        raise
    return found


def _endpoint(setting: str, wanted: str | None, previous: EndpointState | None) -> Endpoint | None:
    """Return the previous socket of a setting if it has the wanted address, or a new one."""
    if previous is None:
        return None if wanted is None else Endpoint(setting, wanted)
    kept = Endpoint(setting, previous.address, previous.fd)
    if wanted is not None and is_same_place(setting, wanted, kept.address) and kept.can_be_reached:
        return kept
    # Should this image fail before it has adopted everything, the next attempt needs the old socket.
    new = None if wanted is None else Endpoint(setting, wanted)
    process.close_after_handover(kept.close)
    return new
