"""The mutants, by promise. docs/DESIGN.md and docs/FAULTS.md make the promises."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """One thing broken on purpose.

    promise: what does not hold then. file: from the root of the repository. text: what is replaced there; it
    occurs once. by: what it is replaced by. tests: arguments for pytest; they name the tests that must fail.
    """

    promise: str
    file: str
    text: str
    by: str
    tests: str


BOUNDS = (
    Mutant(
        "live workers never exceed max_children",
        "workers/pool/policy.py",
        "room = outlook.settings.max_children - len(view.workers)",
        "room = outlook.settings.max_children + 1 - len(view.workers)",
        "tests/unit/test_policy.py tests/unit/test_simulator.py",
    ),
    Mutant(
        "a tenth of the pool at most is replaced at a time",
        "workers/pool/policy.py",
        "return max(1, size // 10)",
        "return size",
        "tests/unit/test_policy.py tests/unit/test_replacement.py",
    ),
    Mutant(
        "a worker leaves only when its successor is ready",
        "workers/pool/policy.py",
        "return outlook.replacing[: max(0, ready - outlook.size)]",
        "return outlook.replacing",
        "tests/unit/test_policy.py tests/unit/test_replacement.py",
    ),
    Mutant(
        "one worker at a time is tried while new workers fail",
        "workers/pool/policy.py",
        "return max(1, served) if view.probing else SPAWN_BATCH",
        "return SPAWN_BATCH",
        "tests/unit/test_policy.py",
    ),
    Mutant(
        "nothing is forked just after the kernel has refused a fork",
        "workers/pool/policy.py",
        "if outlook.now < view.fork_at:",
        "if outlook.now < 0 * view.fork_at:",
        "tests/unit/test_policy.py",
    ),
    Mutant(
        "clients that crash workers make no storm of forks",
        "workers/pool/policy.py",
        "return tuple(wanted[max(0, respawns - view.respawns_left) :])",
        "return tuple(wanted)",
        "tests/unit/test_policy.py tests/unit/test_simulator.py",
    ),
    Mutant(
        "a worker that had served is replaced also while new workers fail",
        "workers/pool/policy.py",
        "    served = view.lost_after_serving + view.away\n",
        "    served = 0 * view.lost_after_serving + view.away\n",
        "tests/unit/test_policy.py tests/unit/test_simulator.py",
    ),
    Mutant(
        "workers that fail together are one failure",
        "workers/pool/failures.py",
        "        if forked_at >= self._pause_began:\n            self.boots += 1",
        "        if forked_at >= -1:\n            self.boots += 1",
        "tests/unit/test_failures.py",
    ),
    Mutant(
        "a try is made at least once a second",
        "workers/pool/failures.py",
        "self.try_at = now + backoff(failures, LONGEST_PAUSE)",
        "self.try_at = now + backoff(failures, 30 * LONGEST_PAUSE)",
        "tests/unit/test_failures.py tests/unit/test_simulator.py",
    ),
    Mutant(
        "a worker that has served says nothing about the next one",
        "workers/pool/deaths.py",
        "elif is_crash(cause) and not has_served and",
        "elif is_crash(cause) and",
        "tests/unit/test_pool.py tests/live/test_death.py tests/live/test_boot.py",
    ),
    Mutant(
        "load that goes down asks no worker with a request to leave",
        "workers/pool/policy.py",
        "expendable = [one for one in expendable if one.idle or not one.ready]",
        "expendable = list(expendable)",
        "tests/unit/test_replacement.py",
    ),
    Mutant(
        "an idle worker is chosen first when a worker has to leave",
        "workers/pool/policy.py",
        "key=lambda one: (one.ready, not one.idle, one.generation, one.spawned_at)",
        "key=lambda one: (one.ready, one.idle, one.generation, one.spawned_at)",
        "tests/unit/test_policy.py",
    ),
    Mutant(
        "what is queued is served at a stop though the last worker has died",
        "workers/pool/policy.py",
        "return [StartReason.RESPAWNED] if draining and view.work_waiting and not view.workers else []",
        "return []",
        "tests/unit/test_policy.py",
    ),
    Mutant(
        "a client whose wake-up was lost is served within half a second",
        "workers/pool/policy.py",
        "waiting = view.work_waiting and view.phase.keeps_size",
        "waiting = False",
        "tests/live/test_waiting.py -k woken_worker_is_gone",
    ),
)

SPARES = (
    Mutant(
        "growth doubles while clients wait",
        "workers/pool/spares.py",
        "min(GROWTH_CAP, 2 * spares.step)",
        "min(GROWTH_CAP, spares.step)",
        "tests/unit/test_spares.py tests/unit/test_simulator.py",
    ),
    Mutant(
        "workers that start count as idle, so that slow boots cause no storm of forks",
        "workers/pool/spares.py",
        "load.idle + load.starting < settings.min_spare",
        "load.idle < settings.min_spare",
        "tests/unit/test_spares.py tests/unit/test_simulator.py",
    ),
    Mutant(
        "a pool shrinks only after a surplus that has lasted",
        "workers/pool/spares.py",
        "min(spares.minima) > settings.most_spare",
        "max(spares.minima) > settings.most_spare",
        "tests/unit/test_spares.py tests/unit/test_simulator.py",
    ),
    Mutant(
        "a pool grows only as memory allows",
        "workers/pool/spares.py",
        "min(wanted, load.affordable)",
        "max(wanted, load.affordable)",
        "tests/unit/test_spares.py",
    ),
    Mutant(
        "a worker that the kernel killed because of low memory is not put back at once",
        "workers/pool/spares.py",
        "size = max(floor, spares.size - load.oom_killed)",
        "size = max(floor, spares.size)",
        "tests/unit/test_spares.py",
    ),
)

DEADLINES = (
    Mutant(
        "a request that takes longer than request_timeout ends with its worker",
        "workers/pool/deadlines.py",
        "return worker.busy_since + settings.request_timeout + worker.extension",
        "return _NEVER",
        "tests/unit/test_deadlines.py tests/unit/test_policy.py",
    ),
    Mutant(
        "extend_deadline() gives the request in hand more time",
        "workers/pool/deadlines.py",
        "settings.request_timeout + worker.extension",
        "settings.request_timeout",
        "tests/unit/test_deadlines.py tests/unit/test_policy.py",
    ),
    Mutant(
        "the stacks of a late worker are dumped before it is killed",
        "workers/pool/deadlines.py",
        "elif now >= dumped_at + DUMP_TIME:",
        "elif now >= dumped_at:",
        "tests/unit/test_deadlines.py tests/unit/test_policy.py",
    ),
    Mutant(
        "a worker that hangs while it boots is killed at boot_timeout",
        "workers/pool/deadlines.py",
        "return worker.spawned_at + settings.boot_timeout if booting else _NEVER",
        "return _NEVER",
        "tests/unit/test_deadlines.py tests/unit/test_policy.py",
    ),
    Mutant(
        "a slow request is reported once",
        "workers/pool/deadlines.py",
        "and not worker.slow_noted",
        "",
        "tests/unit/test_deadlines.py tests/unit/test_policy.py",
    ),
    Mutant(
        "a worker that hangs in get_request() is under request_timeout",
        "workers/worker/lanes.py",
        "if source.may_hang:",
        "if False:",
        "tests/live/test_deadlines.py -k take_that_hangs",
    ),
    Mutant(
        "the time in get_request() is part of the request's time",
        "workers/pool/handle.py",
        "is_same = 0 < request_ns < self.request_ns",
        "is_same = False",
        "tests/unit/test_pool.py",
    ),
    Mutant(
        "an idle worker that does not read a wake-up is killed",
        "workers/pool/deadlines.py",
        "return worker.unread_since + STOPPED_TIME",
        "return _NEVER",
        "tests/unit/test_wakeups.py",
    ),
    Mutant(
        "an idle worker that gets no processor is not taken for stuck",
        "workers/pool/wakeups.py",
        "return min(passed, max(0.0, cpu - unread.cpu))",
        "return passed",
        "tests/unit/test_wakeups.py",
    ),
    Mutant(
        "a worker that serves is not taken for stuck",
        "workers/pool/wakeups.py",
        "if not is_idle or progress != unread.progress:",
        "if not is_idle:",
        "tests/unit/test_wakeups.py",
    ),
    Mutant(
        "no worker is killed for time in which the master did not run",
        "prefork/host/clock.py",
        "self.lost += overrun",
        "self.lost += 0 * overrun",
        "tests/live/test_signals.py -k deadlines_stand_still",
    ),
)

SCOREBOARD = (
    Mutant(
        "a worker cannot shrink the scoreboard under the master",
        "workers/scoreboard.py",
        "fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL",
        "fcntl.F_SEAL_GROW",
        "tests/unit/test_scoreboard.py",
    ),
    Mutant(
        "what a worker scribbles into a total is no exception in the master",
        "workers/scoreboard.py",
        "self.words[index] = min(max(0, self.words[index] + amount), MOST)",
        "self.words[index] += amount",
        "tests/unit/test_scoreboard.py",
    ),
    Mutant(
        "a request that ended with its worker is counted",
        "workers/scoreboard.py",
        "self._add(base + lost, in_hand)",
        "self._add(base + lost, 0)",
        "tests/unit/test_scoreboard.py",
    ),
    Mutant(
        "a state that a worker scribbled is no error for a reader",
        "workers/scoreboard.py",
        "if WorkerState.STARTING <= written <= WorkerState.RETIRING",
        "if written != -1",
        "tests/unit/test_scoreboard.py",
    ),
    Mutant(
        "a process that a handler forks writes nothing into the worker's slot",
        "workers/slot_writer.py",
        'self.words = memoryview(bytearray(SLOT_WORDS * 8)).cast("q")',
        "pass",
        "tests/unit/test_scoreboard.py",
    ),
    Mutant(
        "CPU time of dead workers stays in the totals",
        "workers/scoreboard.py",
        "self.count_slot(slot, field, amount)",
        "self.count_slot(slot, field, 0)",
        "tests/unit/test_pool.py",
    ),
)

DEATHS = (
    Mutant(
        "a SIGKILL that the master did not send is told from one because of low memory",
        "workers/pool/deaths.py",
        "killed_by_others and self._oom.explains(now)",
        "killed_by_others",
        "tests/live/test_death.py tests/unit/test_pool.py",
    ),
    Mutant(
        "a death before ready counts as a failure of the next one",
        "workers/pool/deaths.py",
        "self._failures.boot_failed(words, now, forked_at=forked_at, own_fault=own_fault)",
        "del own_fault",
        "tests/live/test_boot.py -k first_generation",
    ),
    Mutant(
        "signals are blocked around a fork, so that none reaches the master through a newborn worker",
        "workers/system.py",
        "mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, _ALL_SIGNALS)",
        "mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, ())",
        "tests/live/test_death.py tests/live/test_faults.py -k 'newborn or millisecond'",
    ),
    Mutant(
        "what was printed before a fork is printed once",
        "workers/system.py",
        "    _flush_without_waiting()\n    try",
        "    try",
        "tests/compat/test_output.py",
    ),
    Mutant(
        "a worker whose output nobody reads still ends",
        "workers/system.py",
        "flusher.join(FLUSH_TIME)",
        "flusher.join()",
        "tests/live/test_scarcity.py -k output_nobody_reads",
    ),
    Mutant(
        "a worker lets go of what belongs to the master only",
        "workers/worker/life.py",
        "    link.shed(prepared.slot)\n",
        "",
        "tests/live/test_descriptors.py -k 'masters or life_pipe'",
    ),
    Mutant(
        "the workers' user cannot take root's privileges back",
        "workers/credentials.py",
        "os.setresuid(self.uid, self.uid, self.uid)",
        "os.setresuid(self.uid, self.uid, 0)",
        "tests/live/test_privileges.py",
    ),
    Mutant(
        "the groups of root do not stay with the workers' user",
        "workers/credentials.py",
        "os.setgroups(self.groups)",
        "pass",
        "tests/live/test_privileges.py",
    ),
)

WORKER = (
    Mutant(
        "a worker of another user has the environment of that user",
        "workers/credentials.py",
        "            _move_in(self.account)",
        "            pass",
        "tests/live/test_privileges.py -k surroundings",
    ),
    Mutant(
        "a worker leaves when its master is gone",
        "workers/worker/loop.py",
        "        if self._reason is None:\n            self._reason = reason",
        "        if self._reason is None and reason is not ExitKind.ORPHANED:\n            self._reason = reason",
        "tests/live/test_orphans.py -k idle_orphans",
    ),
    Mutant(
        "TERM to a worker has it finish its request and leave",
        "workers/worker/loop.py",
        "            self.leave(ExitKind.RETIRED)",
        "            pass",
        "tests/live/test_death.py -k term_to_a_worker",
    ),
    Mutant(
        "no worker serves more than twice its share at low load",
        "workers/worker/loop.py",
        "if turns % TURNS_IN_PLACE == 0:",
        "if turns % 1_000_000 == 0:",
        "tests/live/test_waiting.py -k spread",
    ),
    Mutant(
        "a busy listener does not starve the others",
        "workers/worker/loop.py",
        "BURST_NS if len(lanes) == 1 else 0",
        "100 * BURST_NS",
        "tests/live/test_embedding.py -k starve",
    ),
    Mutant(
        "everything that is queued is served at a stop",
        "workers/worker/loop.py",
        "            self._drain()\n",
        "            pass\n",
        "tests/live/test_stop.py -k queued",
    ),
    Mutant(
        "a worker without descriptors pauses and does not spin",
        "workers/worker/takes.py",
        "        elif source in self._stalled:\n            self._pause()",
        "        elif source in self._stalled:\n            pass",
        "tests/unit/test_takes.py",
    ),
    Mutant(
        "a shortage of descriptors is logged once",
        "workers/worker/takes.py",
        "        self._stalled.add(source)\n",
        "",
        "tests/unit/test_takes.py",
    ),
    Mutant(
        "a worker asks to be recycled after max_requests",
        "workers/worker/recycling.py",
        "return self._taken() >= self._most",
        "return False",
        "tests/unit/test_recycling.py",
    ),
    Mutant(
        "limits are spread, so that workers do not reach them together",
        "workers/worker/recycling.py",
        "round(limit * (1 - jitter * spread))",
        "round(limit)",
        "tests/unit/test_recycling.py",
    ),
    Mutant(
        "lost clients cost a line a second at most",
        "workers/worker/clients.py",
        "self._quiet_until = now + INTERVAL",
        "self._quiet_until = now",
        "tests/unit/test_lost_clients.py",
    ),
)

STRUCTURE = (
    Mutant(
        "the life of a pool changes in one method, which logs it",
        "prefork/master/master.py",
        "            self._change_life(life, why=type(failure).__name__)",
        "            self._life = life",
        "tests/unit/test_architecture.py -k setter",
    ),
    Mutant(
        "a module that decides cannot read a clock",
        "prefork/master/lifecycle.py",
        "from prefork.workers.states import Phase\n",
        "from prefork.master.clock import Clock\nfrom prefork.workers.states import Phase\n",
        "tests/unit/test_architecture.py -k pure",
    ),
    Mutant(
        "what master and workers share imports neither side",
        "workers/text.py",
        "from __future__ import annotations\n",
        "from __future__ import annotations\n\nfrom prefork.workers.pool import oom\n",
        "tests/unit/test_architecture.py -k meet_only",
    ),
    Mutant(
        "a reload is given up when the pool stops",
        "prefork/master/master.py",
        "        if self._life.phase is not Phase.SERVING:\n            self._reload.cancel()",
        "        if self._life.phase is None:\n            self._reload.cancel()",
        "tests/unit/test_master.py -k reload",
    ),
    Mutant(
        "a worker whose report cannot be made leaves no pipe open",
        "workers/pool/descriptors.py",
        "            os.close(wake_write)\n            raise",
        "            raise",
        "tests/unit/test_pool.py -k without_a_report",
    ),
)

LANES = (
    Mutant(
        "a worker spins only briefly on a descriptor that brings nothing",
        "workers/worker/takes.py",
        "FRUITLESS_TRY = 64",
        "FRUITLESS_TRY = 1",
        "tests/unit/test_takes.py",
    ),
    Mutant(
        "a request that ends its worker is counted before it is shut down",
        "workers/worker/lanes.py",
        "        self._writer.account(Outcome.ERROR, monotonic_ns() - since)\n"
        "        self._server.shutdown_request(request)",
        "        self._server.shutdown_request(request)\n"
        "        self._writer.account(Outcome.ERROR, monotonic_ns() - since)",
        "tests/unit/test_lanes.py",
    ),
    Mutant(
        "so is one that an account counts",
        "workers/worker/lanes.py",
        "        self._account.returned(request, Outcome.ERROR)\n"
        "        self._server.shutdown_request(request)",
        "        self._server.shutdown_request(request)\n"
        "        self._account.returned(request, Outcome.ERROR)",
        "tests/unit/test_lanes.py",
    ),
    Mutant(
        "a request whose handler was good and whose end was not is no good one",
        "workers/worker/lanes.py",
        "        self._account.judge(request, Outcome.ERROR)\n        self._account.returned(",
        "        self._account.returned(",
        "tests/unit/test_lanes.py",
    ),
    Mutant(
        "a step that a patch has replaced for all servers is called",
        "workers/worker/standard.py",
        "is_standard(method.__func__, owner, name)",
        "method.__func__ is vars(owner)[name]",
        "tests/unit/test_source.py -k standard_class",
    ),
    Mutant(
        "another module's class of the same name is not taken for the standard library's",
        "workers/worker/standard.py",
        "type(function) is not FunctionType or function.__globals__ is not namespace",
        "type(function) is not FunctionType",
        "tests/unit/test_source.py -k standard_steps",
    ),
    Mutant(
        "a handler's method that a patch has replaced for all handlers is called in rounds",
        "workers/worker/rounds.py",
        "and handler_class.__init__ is _INIT",
        "and handler_class.__init__ is BaseRequestHandler.__init__",
        "tests/unit/test_rounds.py -k patched",
    ),
    Mutant(
        "a request that cannot be closed is no good one",
        "workers/worker/accounting.py",
        "            outcome = Outcome.ERROR\n            try:\n                end(",
        "            outcome = Outcome.OK\n            try:\n                end(",
        "tests/unit/test_lanes.py",
    ),
)

LISTENERS = (
    Mutant(
        "a listener that a worker has shut down listens again",
        "prefork/master/intakes.py",
        "        sock.listen(before.backlog)",
        "        pass",
        "tests/unit/test_intakes.py",
    ),
    Mutant(
        "a pool with a closed listener is not ready",
        "metrics/status.py",
        "if snapshot[PoolField.LISTENERS_CLOSED]:",
        "if False:",
        "tests/unit/test_web.py",
    ),
    Mutant(
        "a socket that another process holds, too, is not opened by the master",
        "prefork/master/intakes.py",
        "if fault and not self.listener.is_inherited:",
        "if fault:",
        "tests/unit/test_intakes.py",
    ),
    Mutant(
        "the shared socket is non-blocking, so that accept() holds no worker",
        "workers/listener.py",
        "                os.set_blocking(self.fd, False)",
        "                pass",
        "tests/live/test_waiting.py -k blocking_flag",
    ),
    Mutant(
        "a stop refuses new clients of TCP",
        "workers/listener.py",
        "sock.setsockopt(socket.SOL_SOCKET, SO_BINDTOIFINDEX, _NO_SUCH_INTERFACE)",
        "pass",
        "tests/live/test_stop.py -k outcomes_during_a_stop",
    ),
    Mutant(
        "the socket of another process is not closed to its clients by a stop",
        "workers/listener.py",
        "if self.is_inherited or self._intake_closed:",
        "if self._intake_closed:",
        "tests/live/test_systemd.py tests/live/test_cli.py -k 'fd or inherited'",
    ),
    Mutant(
        "a successor's socket file is not removed",
        "workers/files.py",
        "if (found.st_dev, found.st_ino) == identity:",
        "if True:",
        "tests/unit/test_files.py",
    ),
    Mutant(
        "a live Unix socket is not taken over by another start",
        "prefork/host/socket_file.py",
        "            probe.connect(path)\n",
        "            raise ConnectionRefusedError\n",
        "tests/live/test_listeners.py -k live_unix",
    ),
    Mutant(
        "a file that is no socket is not removed by a start",
        "prefork/host/socket_file.py",
        "if not stat.S_ISSOCK(found.st_mode):",
        "if False:",
        "tests/live/test_listeners.py -k no_socket",
    ),
)

METRICS = (
    Mutant(
        "/livez says when the master hangs",
        "metrics/exporter.py",
        "if age > HUNG_AFTER:",
        "if age > 1000 * HUNG_AFTER:",
        "tests/unit/test_web.py",
    ),
    Mutant(
        "/readyz says when the pool takes no requests",
        "metrics/exporter.py",
        "if is_ready(snapshot):",
        "if snapshot is not None:",
        "tests/live/test_exporter.py -k readiness",
    ),
    Mutant(
        "an application's metric cannot take the name of one of the pool's",
        "metrics/exporter.py",
        "if one.name not in names",
        "if one.name",
        "tests/live/test_user_metrics.py tests/unit/test_collector.py",
    ),
    Mutant(
        "silent clients do not keep a scrape waiting",
        "metrics/web.py",
        "if len(self._clients) >= MOST_CLIENTS:",
        "if len(self._clients) >= 1000 * MOST_CLIENTS:",
        "tests/unit/test_web.py tests/live/test_exporter.py -k 'silent or bounded'",
    ),
    Mutant(
        "a client of the metrics has five seconds for everything",
        "metrics/web.py",
        "client = _Client(sock, time.monotonic() + CLIENT_TIME)",
        "client = _Client(sock, time.monotonic() + 1000 * CLIENT_TIME)",
        "tests/live/test_exporter.py -k five_seconds",
    ),
    Mutant(
        "a request head of the metrics is bounded",
        "metrics/web.py",
        "if len(received) > LONGEST_HEAD:",
        "if len(received) > 1000 * LONGEST_HEAD:",
        "tests/unit/test_web.py",
    ),
)

MASTER = (
    Mutant(
        "the program's own handler is called after the stop",
        "prefork/master/signals.py",
        "sent = [number for number in self._stopped_by if self.is_programs_own(number)]",
        "sent = []",
        "tests/unit/test_signals.py",
    ),
    Mutant(
        "a handler of C code is put back after serving",
        "prefork/master/signals.py",
        "                system.put_back(in_c, number)",
        "                pass",
        "tests/live/test_signals.py -k c_code",
    ),
    Mutant(
        "shutdown() in the thread that serves does not wait for itself",
        "prefork/mixin.py",
        "if run.is_served_here:",
        "if False:",
        "tests/live/test_embedding.py -k shutdown_in_the_thread",
    ),
    Mutant(
        "a second TERM stops now",
        "prefork/master/lifecycle.py",
        "(never,   kill,     kill,    kill,   skip)",
        "(never,   none,     none,    none,   skip)",
        "tests/unit/test_lifecycle.py",
    ),
    Mutant(
        "one TERM that comes twice within 50 ms is one",
        "prefork/master/lifecycle.py",
        "if now - first_at < SAME_ORDER:",
        "if now < first_at:",
        "tests/unit/test_lifecycle.py",
    ),
    Mutant(
        "a reload is not begun by a pool that stops",
        "prefork/master/lifecycle.py",
        "(load,    none,     none,    none,   none),\n        MasterOrder.USR2",
        "(load,    load,     load,    load,   load),\n        MasterOrder.USR2",
        "tests/unit/test_lifecycle.py",
    ),
    Mutant(
        "drain_delay goes on accepting",
        "prefork/master/lifecycle.py",
        "drain_at = now + settings.drain_delay if effect is Effect.STOP else now",
        "drain_at = now",
        "tests/unit/test_lifecycle.py",
    ),
    Mutant(
        "the program's own signal handlers are put back",
        "prefork/master/signals.py",
        "signal.signal(number, default_for_none(handler))",
        "pass",
        "tests/unit/test_signals.py tests/live/test_embedding.py -k handler",
    ),
    Mutant(
        "a signal that was ignored at the start stays ignored",
        "prefork/master/signals.py",
        "if number is signal.SIGWINCH or signal.getsignal(number) is signal.SIG_IGN:",
        "if number is signal.SIGWINCH:",
        "tests/unit/test_signals.py tests/live/test_signals.py",
    ),
    Mutant(
        "who may only read a file cannot keep it locked",
        "workers/files.py",
        "fcntl.fcntl(fd, fcntl.F_OFD_SETLK, request)",
        "fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "tests/unit/test_files.py",
    ),
    Mutant(
        "the file of a Unix socket has its mode from its first moment",
        "workers/files.py",
        "before = os.umask(0o777 & ~mode)",
        "before = os.umask(0o027)",
        "tests/unit/test_files.py",
    ),
    Mutant(
        "a worker cannot claim the directory of metrics",
        "metrics/slots.py",
        "found.st_uid != 0",
        "found.st_uid < 0",
        "tests/unit/test_slots.py",
    ),
    Mutant(
        "a scoreboard that another user has made is no pool of the process that has it",
        "prefork/inspect/survey.py",
        "os.fstat(board.fd).st_uid == effective_user_of(pid)",
        "os.fstat(board.fd).st_uid >= 0 * effective_user_of(pid)",
        "tests/unit/test_survey.py",
    ),
    Mutant(
        "sys.exit() in a hook of the master stops nothing",
        "workers/pool/pool.py",
        "        except BaseException as error:\n            if not self.link.is_in_master:",
        "        except Exception as error:\n            if not self.link.is_in_master:",
        "tests/live/test_death.py -k hook",
    ),
    Mutant(
        "a message of a command steers no terminal",
        "prefork/cli/messages.py",
        '"\\n".join(map(printable, text.split("\\n")))',
        "text",
        "tests/unit/test_messages.py",
    ),
    Mutant(
        "a worker that can start no thread drops no client",
        "workers/worker/takes.py",
        "return codes[-2:] == [_THREADED, _START]",
        "return False",
        "tests/live/test_scarcity.py -k without_threads",
    ),
    Mutant(
        "a worker that can start no thread pauses",
        "workers/worker/takes.py",
        "        self._stall(source, error)\n        self._pause()\n",
        "        self._stall(source, error)\n",
        "tests/unit/test_takes.py",
    ),
    Mutant(
        "a stop that comes too late for the loop reaches the program",
        "prefork/master/signals.py",
        "system.send_to_self(number)",
        "pass",
        "tests/unit/test_signals.py",
    ),
    Mutant(
        "a signal that comes while a program is loaded ends nothing",
        "prefork/cli/command_line.py",
        "    unattended.stand(to_the_end=True)\n",
        "    stopping.release()\n",
        "tests/live/test_edges.py",
    ),
    Mutant(
        "a TERM in the last moments leaves the exit status",
        "prefork/cli/command_line.py",
        "    unattended.end(status)\n",
        "    stopping.signal.signal(15, stopping.signal.SIG_DFL)\n",
        "tests/live/test_edges.py",
    ),
    Mutant(
        "a TERM that the program swallows while it is loaded is obeyed",
        "prefork/master/signals.py",
        "self._early = _orders_before_serving()",
        "_orders_before_serving()",
        "tests/unit/test_signals.py tests/live/test_edges.py",
    ),
    Mutant(
        "the intake is closed before the queue is served",
        "prefork/master/master.py",
        "                source.close_intake()",
        "                pass",
        "tests/live/test_stop.py -k outcomes_during_a_stop",
    ),
)

SETTINGS = (
    Mutant(
        "the strongest layer of settings wins",
        "workers/layers.py",
        "            values[key] = _checked(key, raw, layer)",
        "            values.setdefault(key, _checked(key, raw, layer))",
        "tests/unit/test_settings.py",
    ),
    Mutant(
        "max_children without a value has room for the workers that were asked for",
        "workers/settings.py",
        "max(USUAL_CHILDREN, 2 * workers if follows_load else workers)",
        "USUAL_CHILDREN",
        "tests/unit/test_settings.py",
    ),
    Mutant(
        "workers = auto is bounded by max_children",
        "workers/layers.py",
        'values["workers"] = min(counted.count, most)',
        'values["workers"] = counted.count',
        "tests/unit/test_settings.py",
    ),
    Mutant(
        "a key that is no setting is refused",
        "workers/layers.py",
        "        raise SettingsError(key, raw, layer.source(key), no_such_setting(key))",
        "        return raw",
        "tests/unit/test_settings.py",
    ),
)

TOTALS = (
    Mutant(
        "the totals of a worker are in its slot as soon as it is collected",
        "workers/pool/deaths.py",
        "        self._board.carry_over(handle.slot, status.usage)\n        last_words",
        "        last_words",
        "tests/unit/test_pool.py -k totals",
    ),
    Mutant(
        "a scrape waits for totals that are on their way",
        "metrics/processes.py",
        "is_last = time.monotonic() >= until",
        "is_last = True",
        "tests/live/test_worker_processes.py -k on_their_way",
    ),
    Mutant(
        "a worker that ended after the snapshot takes no total with it",
        "metrics/processes.py",
        "while live is None and not is_last:",
        "while live is None and not is_last and time.monotonic() < until:",
        "tests/live/test_worker_processes.py -k no_time_is_left",
    ),
    Mutant(
        "a total of which a part is not known is not shown",
        "metrics/processes.py",
        "if one.slot not in self._highest:",
        "if one.slot == -1:",
        "tests/live/test_worker_processes.py -k not_known",
    ),
)

RELOAD = (
    Mutant(
        "code that differs in its format of state is refused before the exec",
        "prefork/reloading/reload.py",
        "if theirs != ours:",
        "if theirs == ours:",
        "tests/live/test_reload.py tests/live/test_reload_commands.py",
    ),
    Mutant(
        "a reload takes the new number of workers only when new code serves",
        "prefork/master/master.py",
        "if self._reload.new_code_serves:",
        "if self._reload.rolling:",
        "tests/live/test_reload.py -k size",
    ),
    Mutant(
        "a worker of the new code never has the generation of the previous code",
        "workers/pool/pool.py",
        "self.generation = previous.generation + 1",
        "self.generation = previous.generation",
        "tests/live/test_reload.py -k under_the_new_generation",
    ),
    Mutant(
        "a reload that was asked for during a reload follows",
        "prefork/reloading/reload.py",
        '        self.wanted_by = "" if previous is None else previous.again',
        '        self.wanted_by = ""',
        "tests/live/test_reload.py -k is_one_more",
    ),
    Mutant(
        "a state that cannot be written whole is refused before the exec",
        "prefork/host/handover.py",
        "while left:",
        "if left:",
        "tests/unit/test_process.py",
    ),
    Mutant(
        "a state that cannot be read is no fresh start",
        "prefork/host/process.py",
        "system.exit_now(1)",
        "return Process(os.environ)",
        "tests/unit/test_process.py",
    ),
    Mutant(
        "why new code has failed after the exec stands in the log",
        "prefork/cli/command_line.py",
        "if process.handover is not None:",
        "if process.is_trial:",
        "tests/live/test_reload_commands.py -k takes_over_once",
    ),
    Mutant(
        "a program that fails after the exec is run again",
        "prefork/reloading/attempts.py",
        "return Act.RUN_AGAIN if now >= failed_at + pause(attempt) else Act.WAIT",
        "return Act.WAIT",
        "tests/unit/test_attempts.py",
    ),
    Mutant(
        "a process without workers ends when its last attempt has failed",
        "prefork/reloading/attempts.py",
        "return Act.END if attempt.is_last else Act.RUN_AGAIN",
        "return Act.WAIT",
        "tests/live/test_after_the_exec.py -k no_worker_is_left",
    ),
    Mutant(
        "a caretaker that is stopped and continued ends no worker",
        "prefork/reloading/caretaker.py",
        "taken = signal.sigtimedwait(numbers, 0)\n    return None if taken is None else signal.Signals(taken.si_signo)",
        "taken = signal.sigtimedwait(numbers, LOOK_INTERVAL)\n    return None if taken is None else numbers[0]",
        "tests/live/test_after_the_exec.py -k stopped_and_continued",
    ),
    Mutant(
        "the metrics process of an earlier image answers until all is adopted",
        "prefork/master/metrics_process.py",
        "            self._poll.register(self._child.pidfd, select.EPOLLIN)\n\n    def replace_previous",
        "            self._poll.register(self._child.pidfd, select.EPOLLIN)\n            self.replace_previous(0.0)\n\n    def replace_previous",
        "tests/live/test_reload_commands.py -k metrics_address",
    ),
    Mutant(
        "new code that hangs after the exec loses the process",
        "prefork/reloading/load_limit.py",
        "            self._timer.set(self._time)\n\n    def lift",
        "            self._timer.set(0.0)\n\n    def lift",
        "tests/live/test_after_the_exec.py -k 'hangs_is_run_again and sleeps'",
    ),
    Mutant(
        "new code that no handler can interrupt is ended by the kernel",
        "workers/system.py",
        "signal.ITIMER_REAL: (limit, LIMIT_INTERVAL),",
        "signal.ITIMER_REAL: (0.0, 0.0),",
        "tests/live/test_after_the_exec.py -k before_it_imports",
    ),
    Mutant(
        "time in which the process was stopped is not that of new code",
        "prefork/reloading/load_limit.py",
        "if now > self._due + LATE:",
        "if now > self._due + 1000 * LATE:",
        "tests/live/test_after_the_exec.py -k is_not_the_codes",
    ),
    Mutant(
        "there is no exec without the descriptors that an interpreter needs to start",
        "prefork/reloading/exec.py",
        "        _prove_spare_descriptors(memory)\n",
        "",
        "tests/live/test_after_the_exec.py -k shortage",
    ),
    Mutant(
        "a metrics process that dies while new code fails is replaced",
        "prefork/reloading/caretaker.py",
        "            self._keep_metrics()\n",
        "",
        "tests/live/test_after_the_exec.py -k metrics_process_is_replaced",
    ),
    Mutant(
        "new code that fails after the exec leaves the lot to the next attempt",
        "prefork/master/lot_process.py",
        "fcntl.fcntl(previous.control, fcntl.F_DUPFD_CLOEXEC, 3)",
        "previous.control",
        "tests/live/test_parking.py -k fails_after_the_exec",
    ),
    Mutant(
        "control signals are blocked over the exec",
        "workers/system.py",
        "mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, blocked)",
        "mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, ())",
        "tests/live/test_reload.py -k storm_of_terms",
    ),
    Mutant(
        "a socket keeps its queue over a reload",
        "prefork/host/process.py",
        "if name.fits(family, kind, asked):",
        "if not name:",
        "tests/live/test_reload.py -k under_load",
    ),
    Mutant(
        "a trial binds no address that the pool has",
        "prefork/reloading/sockets.py",
        'the address is in use by the master\'s socket."""',
        'take it."""\n        super().bind(address)',
        "tests/live/test_reload.py -k under_load",
    ),
)

TRUST = (
    Mutant(
        "a total that a worker has written over is set back",
        "workers/ledger.py",
        "                found[field] = own[field]\n",
        "                own[field] = found[field]\n",
        "tests/unit/test_ledger.py tests/live/test_trust.py -k 'totals or set_back'",
    ),
    Mutant(
        "totals that a worker has written over are set back after a reload, too",
        "workers/pool/descriptors.py",
        "previous.board, previous.slots, previous.layout, previous.counters\n",
        "previous.board, previous.slots, previous.layout\n",
        "tests/live/test_trust.py -k totals",
    ),
    Mutant(
        "an order that another worker has written into a slot is not obeyed",
        "workers/worker/loop.py",
        "            self._writer.words[ORDER] = Order.SERVE\n",
        "            self._order = self._writer.words[ORDER]\n",
        "tests/unit/test_rounds.py",
    ),
    Mutant(
        "an idle worker is not killed for a request that another worker has written into its slot",
        "workers/worker/loop.py",
        "        self._common.publish()\n",
        "",
        "tests/live/test_trust.py -k siblings",
    ),
    Mutant(
        "a worker is not killed because another one has written that it leaves",
        "workers/pool/policy.py",
        "or (worker.leaving_since is not None and not worker.is_away)",
        "or (worker.leaving_since is not None and worker.killed)",
        "tests/unit/test_policy.py tests/live/test_trust.py",
    ),
    Mutant(
        "a counter that a stray write has filled costs no request",
        "workers/slot_writer.py",
        "            self.add(_BUSY_NS, duration_ns)\n            self.add(_DURATIONS + ",
        "            raise\n            self.add(_DURATIONS + ",
        "tests/unit/test_scoreboard.py",
    ),
    Mutant(
        "a request to be recycled counts only where there is such a limit",
        "workers/pool/policy.py",
        "return settings.max_requests is not None",
        "return True",
        "tests/unit/test_replacement.py",
    ),
    Mutant(
        "a worker that the master cannot supervise never runs",
        "workers/system.py",
        "        if gate.enter():\n",
        "        if True:\n",
        "tests/unit/test_system.py",
    ),
    Mutant(
        "what a worker writes to the pipe that wakes the master is no signal",
        "prefork/master/wakeup.py",
        "return _read(self._own_read)",
        "return _read(self._own_read) + _read(self._workers_read)",
        "tests/unit/test_wakeup.py",
    ),
    Mutant(
        "a worker that floods the master with wake-ups does not occupy it",
        "prefork/master/wakeup.py",
        "if left > 0 and len(ready) == 1:",
        "if left > 600:",
        "tests/unit/test_wakeup.py",
    ),
    Mutant(
        "a scoreboard that a worker has scribbled on stops no reload",
        "workers/scoreboard.py",
        "        if layout != LAYOUT:\n",
        "        slots = os.pread(fd, 17, 0)[16]\n        if layout != LAYOUT:\n",
        "tests/unit/test_scoreboard.py tests/live/test_trust.py",
    ),
    Mutant(
        "the commands find a pool whose header a worker has written over",
        "prefork/master/master.py",
        "        board.write_header()\n",
        "",
        "tests/live/test_trust.py -k commands",
    ),
)

SINGLE = (
    Mutant(
        "with max_requests = 1 a process serves one request",
        "workers/worker/recycling.py",
        "        self._turn.is_last = True\n",
        "",
        "tests/live/test_recycling.py -k one_request_for_each",
    ),
    Mutant(
        "with max_requests = 1 a queue is drained by one process for each request",
        "workers/worker/loop.py",
        "            for check in self._checks:\n                check()\n            self._look_around()\n",
        "            self._look_around()\n",
        "tests/live/test_recycling.py -k queue_is_drained",
    ),
    Mutant(
        "graceful_timeout is no deadline of an only request",
        "workers/pool/policy.py",
        "for one in view.spent if one.busy_since is None]",
        "for one in view.spent]",
        "tests/unit/test_policy.py tests/live/test_recycling.py",
    ),
)

SURROUNDINGS = (
    Mutant(
        "with restore_process a request leaves no working directory behind",
        "workers/worker/surroundings.py",
        "            os.fchdir(self._folder)\n",
        "            pass\n",
        "tests/live/test_surroundings.py",
    ),
    Mutant(
        "with restore_process a request leaves no timer behind",
        "workers/worker/surroundings.py",
        "        system.stop_timers(self._timers)\n",
        "",
        "tests/live/test_surroundings.py",
    ),
)

LOG = (
    Mutant(
        "logging that raises reaches no caller",
        "workers/log.py",
        '        problem = f"\\n    (logging has failed: {type(error).__name__})"\n',
        "        raise\n",
        "tests/unit/test_log.py tests/live/test_reporting.py",
    ),
    Mutant(
        "a warning that no handler shows goes to standard error",
        "workers/log.py",
        "    if target.disabled:\n        return False\n",
        "",
        "tests/unit/test_log.py tests/live/test_reporting.py",
    ),
    Mutant(
        "a report steers no terminal",
        "workers/log.py",
        "[printable(line) for line in _bounded(report.rstrip()).splitlines()]",
        "_bounded(report.rstrip()).splitlines()",
        "tests/unit/test_log.py",
    ),
)

PYTHON_PROCESS = (
    Mutant(
        "a worker that leaves unasked is ended at graceful_timeout",
        "workers/pool/deadlines.py",
        "return worker.leaving_since + settings.graceful_timeout",
        "return _NEVER",
        "tests/unit/test_deadlines.py",
    ),
    Mutant(
        "a worker that takes long to leave unasked is replaced meanwhile",
        "workers/pool/views.py",
        "if one.leave_by is None and not one.killed and not one.is_away",
        "if one.leave_by is None and not one.killed",
        "tests/unit/test_policy.py",
    ),
    Mutant(
        "what the master has registered is not run in a worker",
        "workers/worker/python_process.py",
        "    atexit._clear()\n",
        "",
        "tests/live/test_python_process.py -k master_alone",
    ),
    Mutant(
        "an orphan whose end hangs is ended",
        "workers/worker/python_process.py",
        "        system.end_after(seconds + late)\n",
        "        pass\n",
        "tests/live/test_python_process.py -k orphan_whose_end_hangs",
    ),
    Mutant(
        "multiprocessing renews in a worker what it renews after a fork",
        "workers/worker/python_process.py",
        "        util._run_after_forkers()\n",
        "",
        "tests/live/test_python_process.py -k shares",
    ),
)

PARKING = (
    Mutant(
        "no more connections are parked than max_parked",
        "prefork/parking/lot.py",
        "        while self.held >= self.most and self._parked:",
        "        while False:",
        "tests/unit/test_lot.py",
    ),
    Mutant(
        "the connection that has been idle for longest is evicted first",
        "prefork/parking/lot.py",
        "            oldest = next(iter(self._parked))\n            self._forget(oldest)\n            self._close(oldest, PoolField.PARKED_EVICTED)",
        "            oldest = list(self._parked)[-1]\n            self._forget(oldest)\n            self._close(oldest, PoolField.PARKED_EVICTED)",
        "tests/unit/test_lot.py",
    ),
    Mutant(
        "a parked connection is closed after park_timeout",
        "prefork/parking/lot.py",
        "            if now - parked.since_ns < self.timeout_ns:",
        "            if True:",
        "tests/unit/test_lot.py",
    ),
    Mutant(
        "a client that leaves while it is parked troubles no worker",
        "prefork/parking/lot.py",
        "        if what & _CLOSED and not has_spoken(fd):",
        "        if False:",
        "tests/unit/test_lot.py",
    ),
    Mutant(
        "a full link loses no connection",
        "prefork/parking/lot.py",
        "                if error.errno in SHORTAGES:",
        "                if False:",
        "tests/unit/test_lot.py",
    ),
    Mutant(
        "a stop gives back the parked connections whose clients have spoken",
        "prefork/parking/lot.py",
        "            if has_spoken(fd):\n                end.spoken",
        "            if False:\n                end.spoken",
        "tests/unit/test_lot.py",
    ),
    Mutant(
        "descriptors that a worker sends without a connection are closed",
        "workers/parking.py",
        "                os.close(int.from_bytes(data[at : at + _INT], sys.byteorder))",
        "                pass",
        "tests/unit/test_lot.py",
    ),
    Mutant(
        "what a handler has read ahead goes along with its connection",
        "prefork/parking/handler.py",
        "                self._read_ahead = ahead\n",
        "                pass\n",
        "tests/live/test_parking.py -k keep_nobody_waiting",
    ),
    Mutant(
        "an idle connection holds no worker",
        "prefork/parking/handler.py",
        "            parking.park(request, luggage)",
        "            pass",
        "tests/live/test_parking.py -k quiet",
    ),
    Mutant(
        "a reload keeps the lot",
        "prefork/master/lot_process.py",
        "        if previous is not None:\n            self._hold(previous)",
        "        if False:\n            self._hold(previous)",
        "tests/live/test_parking.py -k reload",
    ),
)

RELOAD_PLACES = (
    Mutant(
        "a daemon that has forked itself is not reloaded",
        "workers/system.py",
        "return bool(flags & _PF_FORKNOEXEC)",
        "return False",
        "tests/live/test_reload_of_children.py -k imported_in_it",
    ),
    Mutant(
        "a spawned process of multiprocessing is not reloaded",
        "prefork/host/process.py",
        'getattr(started, "_parent_process", None) is not None',
        "False",
        "tests/live/test_reload_of_children.py -k spawned",
    ),
    Mutant(
        "new code that would serve in a child is refused",
        "prefork/reloading/trial.py",
        "if report.is_of_child:",
        "if False:",
        "tests/live/test_reload_of_children.py -k new_code",
    ),
)

NEWCOMERS = (
    Mutant(
        "a pool has a waiting room where its class has not asked for one",
        "workers/listener.py",
        "self._listen(WAITING_ROOM)",
        "pass",
        "tests/live/test_listeners.py -k waiting_room",
    ),
    Mutant(
        "a misspelt setting of a class is refused",
        "prefork/misuse.py",
        "LIKE: Final = 0.88",
        "LIKE: Final = 1.0",
        "tests/unit/test_misuse.py",
    ),
    Mutant(
        "a pool that cannot keep up says so",
        "prefork/master/saturation.py",
        "if now - episode.judged < PATIENCE:",
        "if now - episode.judged < 99 * PATIENCE:",
        "tests/unit/test_saturation.py",
    ),
    Mutant(
        "the reason of a pool that cannot keep up is published",
        "prefork/master/saturation.py",
        "            self._publish(episode.cause, episode.last - episode.since)",
        "            pass",
        "tests/unit/test_saturation.py",
    ),
    Mutant(
        "check refuses what run refuses",
        "prefork/cli/commands/check.py",
        "    refuse_before_binding(resolved, watch=watch)",
        "    pass",
        "tests/live/test_cli.py -k refuse_the_same",
    ),
    Mutant(
        "a client that is silent for too long is no error of the server",
        "workers/worker/clients.py",
        "    return bool(request.gettimeout())",
        "    return False",
        "tests/unit/test_lost_clients.py",
    ),
)

MUTANTS = (
    *BOUNDS,
    *SPARES,
    *DEADLINES,
    *SCOREBOARD,
    *DEATHS,
    *WORKER,
    *STRUCTURE,
    *LANES,
    *LISTENERS,
    *METRICS,
    *MASTER,
    *SETTINGS,
    *TOTALS,
    *RELOAD,
    *RELOAD_PLACES,
    *NEWCOMERS,
    *TRUST,
    *SINGLE,
    *SURROUNDINGS,
    *LOG,
    *PYTHON_PROCESS,
    *PARKING,
)
