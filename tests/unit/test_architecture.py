"""The house: who may import whom, who may touch processes, and what ``import prefork`` loads."""

from __future__ import annotations

import ast
import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.package import SOURCES, nodes_of

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.once  # the source is the same for every interpreter

CONTRIBUTING = Path(__file__).parents[2] / "CONTRIBUTING.md"

LAYERS = (
    ("prefork.__main__", "prefork.cli"),
    ("prefork.testing",),
    ("prefork.inspect",),
    ("prefork.wsgi",),
    ("prefork.rpc",),
    (
        *("prefork", "prefork.servers", "prefork.mixin"),
        *("prefork.serving", "prefork.without_workers", "prefork.runs"),
    ),
    ("prefork.misuse", "prefork.signature", "prefork.usable"),
    ("prefork.master",),
    ("prefork.reloading",),
    ("prefork.host",),
    ("prefork.parking", "prefork.urgent"),
    ("prefork.edge",),
    ("prefork.metrics",),
    ("prefork.workers",),
    ("prefork._version",),
)
"""From top to bottom. A module imports from its own layer and from those below, never from above.

CONTRIBUTING.md shows the same layers, so a change of the house is a change of that page, too.
"""

PURE = {
    "prefork.master.box",
    "prefork.master.lifecycle",
    "prefork.reloading.attempts",
    *(f"prefork.workers.{one}" for one in ("cancel", "hosts", "states", "text", "units")),
    *(f"prefork.workers.pool.{one}" for one in ("spares", "views", "deadlines", "policy")),
    *(f"prefork.workers.pool.{one}" for one in ("cancelling", "failures", "handle", "table")),
    "prefork.workers.worker.shortage",
    *(f"prefork.edge.{one}" for one in ("access", "failures", "proxy", "x509")),
}
"""The modules that decide. Each one says so in the first line of its docstring, by the word "(pure)"."""

PURE_OUTSIDE = {
    *("__future__", "typing", "collections", "enum", "msgspec"),
    *("binascii", "calendar", "difflib", "errno", "functools", "ipaddress", "math", "re"),
    *("signal", "struct"),
}
"""What pure modules may import from outside of prefork: neither clock, file, process nor random number."""

PURE_RECORDS = {
    "prefork.workers.settings.Settings",
    "prefork.host.handover.Attempt",
    # The record of a worker holds these, and the master passes the scoreboard that the record reads.
    *(
        f"prefork.workers.pool.handle <- prefork.workers.{one}"
        for one in (
            *("identity.WorkerInfo", "identity.WorkerPipes", "system.Child"),
            *("scoreboard.Scoreboard", "scoreboard.SlotField"),
        )
    ),
}
"""The types that pure modules may import from modules that are not pure; with an arrow, one module alone may."""

APART = {
    "prefork.workers": {"prefork.workers.pool", "prefork.workers.worker"},
    "prefork.workers.pool": {"prefork.workers.worker"},
    "prefork.workers.worker": {"prefork.workers.pool"},
}
"""Inside of workers, what the modules of a folder do not import: the shared ones know neither of the two sides."""

CROSSINGS = {
    # The type of the one argument that the hook ``enter`` of a WorkerSpec receives.
    ("prefork.workers.spec", "prefork.workers.worker.side"),
    # The pool forks, and the child is a worker: it is made here, and its life begins here.
    ("prefork.workers.pool.pool", "prefork.workers.worker.life"),
    ("prefork.workers.pool.pool", "prefork.workers.worker.prepared"),
}
"""The imports that APART does not hold for, each with its reason."""

# errors: a leaf; a directory for metrics that cannot be used is refused like any other setting.
# forks: a leaf; whatever a fork changes in a process stands in its one list.
OPEN_TO_METRICS = {
    "answers",
    "cancel",
    "scoreboard",
    "states",
    "settings",
    "errors",
    "text",
    "forks",
}
"""What the readers of the scoreboard may import of the workers."""

PROCESS_CALLS = {
    "os": (
        *("fork", "forkpty", "posix_spawn", "posix_spawnp", "system", "popen", "abort", "_exit"),
        *("wait", "wait3", "wait4", "waitid", "waitpid", "waitstatus_to_exitcode"),
        *("kill", "killpg", "pidfd_open"),
        *("execl", "execle", "execlp", "execlpe", "execv", "execve", "execvp", "execvpe"),
        *("spawnl", "spawnle", "spawnlp", "spawnlpe", "spawnv", "spawnve", "spawnvp", "spawnvpe"),
    ),
    "signal": ("pidfd_send_signal", "pthread_kill", "raise_signal", "alarm", "setitimer"),
}
"""What makes, awaits, signals or ends a process, by the module that offers it."""

PROCESS_MODULES = {"subprocess", "multiprocessing", "concurrent", "pty", "_posixsubprocess"}
"""Modules that make processes themselves."""

ALLOWED_CALLS = {
    # It starts programs of ours, and is the only module that does.
    "prefork.workers.programs": {"subprocess"},
    # Inside that child, once the verdict is written: threads of the application would keep it.
    "prefork.cli.command_line": {"os._exit"},
    # It runs in a test of the program, and neither in a master nor in a worker.
    "prefork.testing.pool": {"multiprocessing", "os.kill"},
}
"""Calls outside of workers/system.py, each with its reason."""


WALL_CLOCK = {
    "prefork.edge.tls": "whether the certificate of a client has ended",
    "prefork.metrics.collector": "instants that are shown to people and to Prometheus",
    "prefork.reloading.reload": "when the last reload has succeeded, for the same readers",
    "prefork.workers.waits": "how long a datagram has waited: the kernel stamps it with this clock",
    "prefork.workers.worker.access": "the time of a line",
    "prefork.workers.worker.web_lines": "the time of a line",
    "prefork.wsgi.response": "the field Date",
}
"""The modules that read the clock that can be set, and what for. No deadline, pause or rate is among these."""

READS_WALL_CLOCK = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow"}


def imports_of(tree: ast.Module) -> Iterator[str]:
    """Yield every module that is imported anywhere in a source, for types and in functions too."""
    for node in nodes_of(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            # Names of a package may be modules; what is none comes out of the package itself.
            yield from (name if name in SOURCES else str(node.module) for name in inside)


@functools.cache
def inside_imports(name: str) -> set[str]:
    """Return what a module imports of prefork."""
    return {found for found in imports_of(SOURCES[name]) if found.split(".")[0] == "prefork"}


def names_from_inside(name: str) -> set[str]:
    """Return the dotted names that a module imports of prefork: modules, and what it takes out of them."""
    found = set()
    for node in nodes_of(SOURCES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {one for one in found if one.split(".")[0] == "prefork"}


def impure_names(module: str, imported: set[str]) -> set[str]:
    """Return which of the names that a pure module imports of prefork are neither pure nor a record."""
    return {
        name
        for name in imported
        if not {name, name.rpartition(".")[0]} & PURE
        and not {name, f"{module} <- {name}"} & PURE_RECORDS
    }


def folder_of(name: str) -> str:
    """Return the package that a module stands in; a package stands in itself."""
    is_package = any(other.startswith(f"{name}.") for other in SOURCES)
    return name if is_package else name.rpartition(".")[0]


def says_pure(name: str) -> bool:
    """Return whether the first line of a module's docstring says that the module is pure."""
    return "(pure)" in (ast.get_docstring(SOURCES[name]) or "").partition("\n")[0]


def layer_of(name: str) -> int:
    """Return how far down a module stands: where its folder does, or it itself."""
    for depth, layer in enumerate(LAYERS):
        if name in layer or any(name.startswith(f"{one}.") for one in layer if one != "prefork"):
            return depth
    raise AssertionError(f"{name} has no layer: say in LAYERS where it belongs")


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """Return the modules of one import circle in their order, an empty list where there is none."""
    cleared: set[str] = set()

    def circle_from(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in cleared:
            return []
        for following in sorted(graph.get(name, ())):
            if found := circle_from(following, [*way, name]):
                return found
        cleared.add(name)
        return []

    return next((found for name in sorted(graph) if (found := circle_from(name, []))), [])


def reads_wall_clock(tree: ast.Module) -> bool:
    """Return whether a source reads the clock that can be set."""
    taken = {
        f"{node.module}.{alias.name}"
        for node in nodes_of(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    named = {
        f"{node.value.id}.{node.attr}"
        for node in nodes_of(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    return bool((taken | named) & READS_WALL_CLOCK)


def process_calls(tree: ast.Module) -> set[str]:
    """Return what a source names of PROCESS_CALLS, PROCESS_MODULES and prctl."""
    aliases = {
        alias.asname or alias.name: alias.name.lstrip("_")
        for node in nodes_of(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    found = {name.split(".")[0] for name in imports_of(tree)} & PROCESS_MODULES
    for node in nodes_of(tree):
        if isinstance(node, ast.Attribute):
            owner = aliases.get(node.value.id, "") if isinstance(node.value, ast.Name) else ""
            if node.attr == "prctl" or node.attr in PROCESS_CALLS.get(owner, ()):
                found.add(f"{owner}.{node.attr}".lstrip("."))
        elif isinstance(node, ast.ImportFrom):
            offered = PROCESS_CALLS.get(str(node.module).lstrip("_"), ())
            found |= {f"{node.module}.{name.name}" for name in node.names if name.name in offered}
    return found


# --- imports


def test_every_module_is_read() -> None:
    """The package is whole: all three floors are found where it is installed."""
    assert {
        "prefork",
        "prefork.cli.command_line",
        "prefork.metrics",
        "prefork.workers.worker.loop",
    } <= SOURCES.keys()


def test_contributors_are_shown_the_layers() -> None:
    """CONTRIBUTING.md has the layers as they are held here, in their order."""
    page = CONTRIBUTING.read_text("utf-8")
    picture = page.partition("```text\n")[2].partition("```")[0]

    assert tuple(tuple(line.split()) for line in picture.splitlines()) == LAYERS


def test_each_folder_has_a_layer_of_its_own() -> None:
    """Two folders never share a layer: each could import the other then."""
    for layer in LAYERS:
        assert sum(folder_of(name) == name for name in layer) <= 1


def test_every_folder_is_a_package() -> None:
    """A folder of modules has an __init__.py; without it the folder would be left out of a wheel."""
    folders = {name.rpartition(".")[0] for name in SOURCES} - {""}

    assert folders <= SOURCES.keys()


def test_imports_go_one_way() -> None:
    """A module imports nothing of prefork from a layer above its own."""
    upwards = {
        (name, found)
        for name in SOURCES
        for found in inside_imports(name)
        if layer_of(found) < layer_of(name)
    }

    assert upwards == set()


def test_no_import_circle() -> None:
    """No module imports itself, by whatever way around."""
    circle = circle_in({name: inside_imports(name) - {name} for name in SOURCES})

    assert circle == []


def test_circles_are_found() -> None:
    """The search above finds a circle, and says which modules are on it."""
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle_in({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


@pytest.mark.parametrize("name", [name for name in SOURCES if name.startswith("prefork.metrics")])
def test_metrics_read_the_scoreboard_only(name: str) -> None:
    """Of the workers the metrics know the scoreboard, the states and the settings."""
    of_workers = {found for found in inside_imports(name) if found.startswith("prefork.workers")}

    assert of_workers <= {f"prefork.workers.{one}" for one in OPEN_TO_METRICS}


def test_packages_of_the_lower_floors_are_empty() -> None:
    """Importing one module of workers or metrics runs no other: their __init__ is a docstring."""
    for name in ("prefork.workers", "prefork.metrics"):
        assert [type(node) for node in SOURCES[name].body] == [ast.Expr]


def test_pool_and_worker_meet_only_where_the_list_says() -> None:
    """Shared modules import neither the pool nor a worker, and these two not each other, but for the list."""
    crossings = {
        (name, found)
        for name in SOURCES
        for found in inside_imports(name)
        if folder_of(found) in APART.get(folder_of(name), ())
    }

    assert crossings == CROSSINGS
    assert {folder_of(name) for name in SOURCES if name.startswith("prefork.workers")} == set(APART)


@pytest.mark.parametrize("name", sorted(PURE))
def test_pure_modules_know_no_clock_and_no_system(name: str) -> None:
    """The decisions are values in, values out: no clock, process, file or random number can come in."""
    outside = {found.split(".")[0] for found in imports_of(SOURCES[name])} - {"prefork"}

    assert outside <= PURE_OUTSIDE
    assert impure_names(name, names_from_inside(name)) == set()
    assert process_calls(SOURCES[name]) == set()


def test_modules_that_decide_are_the_pure_ones() -> None:
    """A module of the master and below that says it is pure is held to that, and no other is."""
    floors = tuple(
        f"prefork.{one}" for one in ("master", "reloading", "host", "parking", "edge", "workers")
    )

    assert {name for name in SOURCES if name.startswith(floors) and says_pure(name)} == PURE


@pytest.mark.parametrize(
    ("name", "is_impure"),
    [
        ("prefork.master.clock.Clock", True),
        ("prefork.workers.system", True),
        ("prefork.workers.settings", True),
        ("prefork.workers.settings.cpu_count", True),
        ("prefork.workers.scoreboard.Scoreboard", True),
        ("prefork.workers.settings.Settings", False),
        ("prefork.workers.states", False),
        ("prefork.workers.states.Phase", False),
    ],
)
def test_impure_imports_are_found(name: str, is_impure: bool) -> None:
    """The rule above takes a pure module and a named record, and no other module of prefork's own."""
    assert bool(impure_names("prefork.workers.pool.policy", {name})) is is_impure


def life_setters(tree: ast.Module) -> set[str]:
    """Return the names of the functions that assign to ``_life`` of an object, or delete it."""
    return {
        function.name
        for function in nodes_of(tree)
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and node.attr == "_life"
        if not isinstance(node.ctx, ast.Load)
    }


def test_phase_has_one_setter() -> None:
    """The life of a pool is changed by the one method that logs the change, wherever it comes from."""
    setters = {name: life_setters(tree) for name, tree in SOURCES.items()}

    assert {name: found for name, found in setters.items() if found} == {
        "prefork.master.master": {"__init__", "_change_life"}
    }
    assert life_setters(ast.parse("def f():\n a, b._life = 1, 2")) == {"f"}


def test_no_deadline_follows_the_clock_that_can_be_set() -> None:
    """Only the modules of the list read the wall clock, each for a reason that is no deadline."""
    assert {name for name, tree in SOURCES.items() if reads_wall_clock(tree)} == set(WALL_CLOCK)


# --- processes


def test_only_system_touches_processes() -> None:
    """Forking, waiting, signalling and ending happen in workers/system.py, and where the table gives a reason."""
    others = SOURCES.keys() - {"prefork.workers.system"}
    found = {name: calls for name in others if (calls := process_calls(SOURCES[name]))}

    assert found == ALLOWED_CALLS


def test_system_waits_for_no_stranger() -> None:
    """No wait for any child: the embedding program's own children are not ours."""
    calls = [
        node for node in ast.walk(SOURCES["prefork.workers.system"]) if isinstance(node, ast.Call)
    ]
    waits = [call for call in calls if ast.unparse(call.func).startswith("os.wait")]

    assert waits
    for call in waits:
        assert ast.unparse(call.func) in {"os.waitid", "os.waitpid", "os.wait4"}
        which = [ast.unparse(argument) for argument in call.args]
        assert not {"-1", "0", "os.P_ALL", "os.P_PGID"} & set(which[: len(which) - 1])


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos.fork()",
        "import os as system\nsystem.kill(1, 9)",
        "from os import _exit",
        "import os\nend = os._exit",
        "import signal\nsignal.pidfd_send_signal(3, 9)",
        "import _signal\n_signal.pthread_kill(3, 9)",
        "import subprocess",
        "from multiprocessing import Process",
        "def f():\n    import concurrent.futures",
        "import ctypes\nctypes.CDLL(None).prctl(1, 9)",
        "import os\nos.execv('/bin/true', [])",
    ],
)
def test_reader_finds_process_calls(source: str) -> None:
    """The reader above sees each way to name such a call."""
    assert process_calls(ast.parse(source))


@pytest.mark.parametrize(
    "source", ["plan.kill", "child.wait()", "import os\nos.getpid()", "signal = 1"]
)
def test_reader_finds_nothing_else(source: str) -> None:
    """Methods that bear such a name are no such calls."""
    assert process_calls(ast.parse(source)) == set()


# --- what is loaded


@pytest.mark.processes
@pytest.mark.parametrize(
    "module",
    [
        "prefork",
        "prefork.servers",
        "prefork.master.master",
        "prefork.workers.pool.pool",
        "prefork.workers.scoreboard",
    ],
)
def test_import_loads_no_metrics_and_no_command_line(module: str) -> None:
    """An application pays for what it uses: the library loads neither metrics libraries nor the command line's."""
    unwanted = {
        "prometheus_client",
        "psutil",
        "click",
        "rich",
        "asyncio",
        "multiprocessing",
        "shutil",
        "subprocess",
    }
    program = f"import sys, {module}; print(*sys.modules, sep='\\n')"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    loaded = subprocess.run(
        [sys.executable, "-c", program],
        env=env,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout.split()

    assert module in loaded
    assert {*unwanted, "prefork.cli"} & set(loaded) == set()
