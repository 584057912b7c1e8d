"""``make chaos``: run the chaos suite for an hour, or as long as is asked for.

    python -m tests.chaos --minutes 5 --seed 7

Each episode has a pool of its own. ``--episode N`` runs one episode again. The exit status is 1 if anything is
unexplained or broken.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.chaos.episode import Episode
from tests.chaos.schedule import Temper, plan
from tests.chaos.verdict import Result, shortened, table
from tests.support.processes import become_subreaper, reap_adopted


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0, help="of all episodes together")
    parser.add_argument("--seed", type=int, help="of the schedule; a random one without it")
    parser.add_argument("--episode", type=int, help="run this one alone")
    parser.add_argument("--episode-minutes", type=float, default=4.0, help="of faults in each")
    parser.add_argument("--temper", choices=[one.value for one in Temper], default="calm")
    parser.add_argument("--keep", type=Path, help="a folder for the logs of all episodes")
    given = parser.parse_args()
    seed = random.SystemRandom().randrange(1_000_000) if given.seed is None else given.seed
    become_subreaper()
    # A shell and nohup have background jobs ignore these, and a master leaves an ignored signal alone.
    for number in (signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # no pool is left behind
    everything = Result()
    end = time.monotonic() + given.minutes * 60
    number = given.episode or 0
    while time.monotonic() < end:
        seconds = min(given.episode_minutes * 60, max(10.0, end - time.monotonic()))
        everything.add(_run(seed, number, seconds, Temper(given.temper), given.keep))
        if given.episode is not None:
            break
        number += 1
    print(f"\nseed {seed}, {given.temper}\n{table(everything)}", flush=True)  # noqa: T201
    return 0 if everything.is_good else 1


def _run(seed: int, number: int, seconds: float, temper: Temper, keep: Path | None) -> Result:
    drawn = plan(seed, number, seconds, temper)
    print(  # noqa: T201
        f"episode {number} of seed {seed}, {temper.value}: workers {drawn.workers} to "
        f"{drawn.max_children}, {len(drawn.rounds)} rounds, log to a {drawn.sink.value}, "
        f"ends by {drawn.ending.value}",
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="prefork-chaos-") as folder:
        episode = Episode(drawn, Path(folder))
        told = threading.Event()
        teller = threading.Thread(target=_tell, args=(episode, told), daemon=True)
        teller.start()
        try:
            result = episode.run()
        finally:
            told.set()
            teller.join()
            reap_adopted()
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                log = Path(folder, "log").read_bytes()
                (keep / f"{seed}-{number}-{temper.value}.log").write_bytes(log)
    for text in shortened([*result.unexplained, *result.breaches]):
        print(f"  {text}", flush=True)  # noqa: T201
    return result


def _tell(episode: Episode, told: threading.Event) -> None:
    while not told.wait(10):
        print(f"  {episode.progress()}", flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
