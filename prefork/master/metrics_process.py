"""The metrics process as the master keeps it: forked, watched, replaced, and ended last (master).

It is a supervised process (supervised.py), which writes its signs of life to an eventfd. The address on
which it answers is the master's, so that a new process, and a new image of the master, go on where the
previous one was.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import threading

from prefork.host.endpoint import Endpoint, is_same_place
from prefork.host.handover import MetricsState
from prefork.host.process import process
from prefork.master.metrics_main import LEAVE, MetricsSpec, live
from prefork.master.supervised import END_BOUND, SILENCE, START_INTERVAL, SupervisedProcess
from prefork.workers import forks, system
from prefork.workers.pool.pool import Pool
from prefork.workers.scoreboard import PoolField
from prefork.workers.spec import WorkerSpec
from prefork.workers.system import Child, System


class MetricsProcess:
    """Keeps the metrics process of one pool. Where the setting ``metrics`` is off there is none.

    The constructor binds the address. It raises SettingsError for a text that is no address, and
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
            self._endpoint = _endpoint(spec.settings.metrics, previous)
            if self._endpoint is not None:
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
        if self._endpoint is None:
            return None
        folder = self._spec.metrics_dir
        return MetricsState(
            self._endpoint.address,
            self._endpoint.fd,
            self._process.child,
            title=_title(self._spec, self._endpoint),
            metrics_dir=None if folder is None else os.fsencode(folder),
            umask=self._spec.settings.umask,
            credentials=self._spec.credentials,
        )

    @property
    def endpoint(self) -> Endpoint | None:
        """What the metrics process answers on; None where there is none."""
        return self._endpoint

    @property
    def address(self) -> str | None:
        """Where the metrics process listens, with the real port; None where there is none."""
        return None if self._endpoint is None else self._endpoint.address

    def _let_go_in_child(self) -> None:
        # A child has the thread that has forked it, and with it the thread's number. The child of
        # the thread that is forking the metrics process is the metrics process, which keeps these.
        if self._endpoint is not None and self._forking != threading.get_ident():
            forks.close((self._endpoint.fd, self._beat))

    def tick(self, pool: Pool, now: float) -> None:
        """Look after the metrics process, without waiting. now: the master's clock."""
        if self._endpoint is None:
            self._collect(pool)  # a reload that has switched metrics off leaves one to collect
            return
        self._hear(now)
        self._collect(pool)
        start = functools.partial(self._start, self._endpoint, pool)
        self._process.tick(now, start, interval=START_INTERVAL)

    def stop(self) -> None:
        """End the metrics process and collect it. Waits END_BOUND and a moment at most."""
        self._process.stop()

    def close(self) -> None:
        """Release the address. The process has ended by now."""
        with forks.lock:
            forks.remove(self._on_list)
            if self._endpoint is not None:
                self._endpoint.close()
                os.close(self._beat)
                self._endpoint = None

    def _hear(self, now: float) -> None:
        if self._process.child is not None and self._drain_beat():
            self._process.note_sign_of_life(now, address=self.address)

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

    def _start(self, endpoint: Endpoint, pool: Pool) -> None:
        self._drain_beat()  # signs of life of the previous process
        spec = MetricsSpec(
            worker_spec=self._spec,
            link=pool.link,
            listener=endpoint.fd,
            beat=self._beat,
            title=_title(self._spec, endpoint),
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


def _title(spec: WorkerSpec, endpoint: Endpoint) -> str:
    name = f"[{spec.settings.name}] " if spec.settings.name else ""
    return f"prefork: metrics {name}{endpoint.address}"


def _endpoint(address: str | None, previous: MetricsState | None) -> Endpoint | None:
    """Return where to answer: the previous socket if it has the wanted address, or a new one."""
    if previous is None:
        return None if address is None else Endpoint(address)
    kept = Endpoint(previous.address, previous.fd)
    if address is not None and is_same_place(address, kept.address) and kept.can_be_reached:
        return kept
    # Should this image fail before it has adopted everything, the next attempt needs the old socket.
    new = None if address is None else Endpoint(address)
    process.close_after_handover(kept.close)
    return new
