"""docs/OPERATING.md: what the page says of upgrades."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING

import pytest

from tests.support.clients import ask

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.server import Program

APPLICATION = """
import prefork

class Version(prefork.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"{version}")
"""


@pytest.mark.parametrize("way", ["--chdir", "TARGET", "working directory"])
def test_link_to_the_folder_of_the_code(
    start: Callable[..., Program], tmp_path: Path, way: str
) -> None:
    """A reload follows a symbolic link in --chdir and in TARGET, but not one in the working directory."""
    for version in ("first", "second"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "app.py").write_text(APPLICATION.format(version=version))
    current = tmp_path / "current"
    current.symlink_to("first")
    arguments = {
        "--chdir": ["--chdir", str(current), "app.py:Version"],
        "TARGET": [f"{current}/app.py:Version"],
        "working directory": ["app.py:Version"],
    }[way]
    before = ["env", "-C", str(current)] if way == "working directory" else []
    program = start(
        None,
        before=before,
        arguments=["-m", "prefork", "run", *arguments, "--bind", "127.0.0.1:0", "--workers", "1"],
    )
    program.wait_logged("master .*ready workers=1")
    port = re.search(r"listeners=tcp://127\.0\.0\.1:(\d+)", program.log)
    assert port is not None
    address = ("127.0.0.1", int(port[1]))
    assert ask(address) == "first"

    current.unlink()
    current.symlink_to("second")
    program.signal(signal.SIGHUP)
    program.wait_logged("master reloaded generation=1")

    assert ask(address) == ("first" if way == "working directory" else "second")
