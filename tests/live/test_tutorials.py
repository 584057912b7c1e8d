"""The tutorials in docs/: their commands are typed, their files are saved, and what they show is what appears."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.ports import free_port
from tests.support.tutorials import Reader, files_of

pytestmark = pytest.mark.once  # documents

DOCS = Path(__file__).parents[2] / "docs"


def read(name: str) -> str:
    """Return a tutorial."""
    return (DOCS / name).read_text(encoding="utf-8")


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize(
    ("name", "pool", "home", "ports"),
    [
        ("TUTORIAL.md", "counter", "/home/you/primes", ("9000", "9100")),
        ("TUTORIAL-WSGI.md", "shopping", "/home/you/shop", ("8000", "9100")),
    ],
)
def test_tutorial_works(
    name: str, pool: str, home: str, ports: tuple[str, ...], tmp_path: Path
) -> None:
    """Who does what the tutorial says sees what the tutorial shows, from its first step to the stop of the pool."""
    names = {port: str(free_port()) for port in ports}
    # A lighter load, which says more often what it does, so that the test is quick.
    names |= {"range(8)": "range(4)", "time.sleep(1)": "time.sleep(0.2)"}
    names[pool] = f"{pool}-{names[ports[0]]}"
    with Reader(read(name), tmp_path, home, names) as reader:
        reader.do_all()
        assert reader.terminals.keys() == {"server"}
        assert reader.terminals["server"].popen.wait(30) == 0


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None,
    reason="systemd-analyze is not installed (Debian's package systemd)",
)
@pytest.mark.parametrize(
    ("name", "unit"), [("TUTORIAL.md", "primes.service"), ("TUTORIAL-WSGI.md", "shop.service")]
)
def test_unit_of_tutorial_is_verified(name: str, unit: str, tmp_path: Path) -> None:
    """``systemd-analyze verify`` has nothing to say about the unit, once its command exists."""
    text = files_of(read(name))[unit]
    text = re.sub(r"/opt/\w+/venv/bin/prefork", str(shutil.which("true")), text)
    (tmp_path / unit).write_text(re.sub(r"/opt/\w+", str(tmp_path), text))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(tmp_path / unit)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if unit in line]
    assert (done.returncode, said) == (0, [])
