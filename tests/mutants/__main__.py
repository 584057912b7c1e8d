"""``make mutants``: break the product on purpose, one promise at a time, and see whether the tests notice.

    python -m tests.mutants                   all of them; writes docs/MUTANTS.md
    python -m tests.mutants --new             those that docs/MUTANTS.md does not have yet; adds them
    python -m tests.mutants queued spares     those whose promise or file has one of these words

Each mutant is made in a copy of the tree, where the tests that it names are run, and no others. Those tests are
run once without any mutant, too: a test that fails anyway has noticed nothing. The exit status is 1 if a mutant
survives.
"""

from __future__ import annotations

import contextlib
import os
import platform
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Final, NamedTuple

from tests.mutants.table import MUTANTS, Mutant

HOME: Final = Path(__file__).parents[2]
PAGE: Final = HOME / "docs" / "MUTANTS.md"

AT_ONCE: Final = 2

LIMIT: Final = 240.0
"""Seconds for the tests of one mutant. One that hangs them longer than that is noticed by any CI."""


MARK: Final = "MUTANT_RUN"
"""A variable that the tests and all their programs inherit, by which they are found."""


PYTEST: Final = (sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider")


class Verdict(Enum):
    """What became of a mutant."""

    CAUGHT = "caught"
    HANGS = "caught: the tests hang"
    SURVIVED = "SURVIVED"
    NO_TEST = "NO TEST: they fail without it, or are none"


class Tried(NamedTuple):
    """A mutant that was tried. seconds: how long its tests took."""

    mutant: Mutant
    verdict: Verdict
    seconds: float


def copy_tree(folder: Path) -> None:
    """Copy everything that git knows of the tree, as it is now."""
    folder.chmod(0o755)  # some tests run programs as another user
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=HOME, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        source, target = HOME / name, folder / name
        if source.is_symlink() or source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)


def run_tests(folder: Path, arguments: str) -> int | None:
    """Return the exit status of pytest, None if it takes too long. Afterwards none of its processes is left."""
    mark = f"{MARK}={secrets.token_hex(8)}"
    tests = subprocess.Popen(
        [*PYTEST, *shlex.split(arguments)],
        cwd=folder,
        env=os.environ | dict([mark.split("=")]),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        return tests.wait(LIMIT)
    except subprocess.TimeoutExpired:
        tests.terminate()  # pytest ends the programs of its tests then
        with contextlib.suppress(subprocess.TimeoutExpired):
            tests.wait(20)
        return None
    finally:
        _kill_marked(mark)
        tests.wait()


def _kill_marked(mark: str) -> None:
    """Kill every process that has the mark in its environment: the tests, and what they have started."""
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if mark.encode() in Path(f"/proc/{entry}/environ").read_bytes():
                os.kill(int(entry), signal.SIGKILL)


def trial(mutant: Mutant) -> Tried:
    """Make a mutant in a copy of the tree, and run its tests there."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="prefork-mutant-") as name:
        folder = Path(name)
        copy_tree(folder)
        place = folder / mutant.file
        place.write_text(place.read_text().replace(mutant.text, mutant.by))
        status = run_tests(folder, mutant.tests)
    verdicts = {None: Verdict.HANGS, 1: Verdict.CAUGHT, 0: Verdict.SURVIVED}
    return Tried(mutant, verdicts.get(status, Verdict.NO_TEST), time.monotonic() - begun)


def run_as_it_is(tests: str) -> tuple[str, int | None]:
    """Run tests in a copy of the tree in which nothing is broken; return them and the exit status of pytest."""
    with tempfile.TemporaryDirectory(prefix="prefork-mutant-") as name:
        copy_tree(Path(name))
        return tests, run_tests(Path(name), tests)


def try_all(mutants: Sequence[Mutant]) -> Iterable[Tried]:
    """Yield what becomes of each mutant, in the order of the table."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        useless = set()
        for tests, status in pool.map(run_as_it_is, {mutant.tests for mutant in mutants}):
            if status != 0:
                useless.add(tests)
                print(f"fail without any mutant: {tests}", flush=True)  # noqa: T201
        for tried in pool.map(trial, mutants):
            bad = tried.mutant.tests in useless
            yield tried._replace(verdict=Verdict.NO_TEST) if bad else tried


def page(results: Mapping[str, str]) -> str:
    """Return docs/MUTANTS.md. results: what became of each mutant when it was tried last, by promise."""
    known = [(one, results[one.promise]) for one in MUTANTS if one.promise in results]
    caught = sum(_is_caught(result) for _, result in known)
    lines = [
        "# Mutants",
        "",
        "A test that cannot fail holds nothing. `make mutants` breaks one promise at a time in a copy of the tree and",
        "runs the tests that hold it; `tests/mutants/table.py` has the rows. This page is written by that command.",
        "",
        f"{datetime.now(UTC).date()}, CPython {platform.python_version()}: {caught} of {len(known)} caught.",
        "",
        "| promise that is broken | in | tests that must notice | result |",
        "|---|---|---|---|",
    ]
    for mutant, result in known:
        cells = mutant.promise, f"`{mutant.file}`", f"`{mutant.tests}`", result
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def results_on_page() -> dict[str, str]:
    """Return the results that the page has, by promise."""
    rows = (line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines())
    return {cells[0]: cells[-1] for cells in rows if len(cells) == 4}


def _is_caught(result: str) -> bool:
    return result in (Verdict.CAUGHT.value, Verdict.HANGS.value)


def main(words: Sequence[str]) -> int:
    """Try the mutants that are asked for, all of them without a word; return the exit status."""
    results = results_on_page() if words == ["--new"] else {}
    if words == ["--new"]:
        chosen = [one for one in MUTANTS if not _is_caught(results.get(one.promise, ""))]
    else:
        chosen = [one for one in MUTANTS if _is_named(one, words)]
    tried = []
    for one in try_all(chosen):
        tried.append(one)
        results[one.mutant.promise] = one.verdict.value
        print(  # noqa: T201
            f"{one.verdict.value:<10} {one.seconds:5.0f} s  {one.mutant.promise}", flush=True
        )
    if words in ([], ["--new"]):
        PAGE.write_text(page(results))
    bad = [one for one in tried if not _is_caught(one.verdict.value)]
    print(f"{len(tried) - len(bad)} of {len(tried)} caught")  # noqa: T201
    return 1 if bad else 0


def _is_named(mutant: Mutant, words: Sequence[str]) -> bool:
    return not words or any(word in f"{mutant.promise} {mutant.file}" for word in words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
