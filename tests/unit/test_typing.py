"""What type checkers make of a program that uses prefork."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = [pytest.mark.once, pytest.mark.processes]

HOME = Path(__file__).parents[2]
TYPED = HOME / "tests" / "typed"

CHECKERS = {
    "mypy": [
        "-m",
        "mypy",
        "--strict",
        "--config-file",
        str(HOME / "pyproject.toml"),
        "--no-pretty",
    ],
    "basedpyright": ["-m", "basedpyright", "--project", str(TYPED), "--pythonpath", sys.executable],
}
"""The arguments of the interpreter for each checker. basedpyright stands for pyright: it is the same
checker, and comes as a Python package.
"""


def complaints(checker: str, file: str, folder: Path) -> tuple[int, list[int]]:
    """Return the exit status of a checker and the lines that it complains about in a file."""
    if find_spec(checker) is None:
        pytest.skip(f"{checker} is not installed")
    done = subprocess.run(
        [sys.executable, *CHECKERS[checker], str(TYPED / file)],
        cwd=folder,
        env={**os.environ, "MYPYPATH": str(HOME), "MYPY_CACHE_DIR": str(HOME / ".mypy_cache")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    lines = re.findall(rf"{re.escape(file)}:(\d+):(?:\d+[: -]+)? *error", done.stdout)
    return done.returncode, sorted({int(line) for line in lines})


@pytest.mark.parametrize("checker", CHECKERS)
def test_good_program_has_no_errors(checker: str, tmp_path: Path) -> None:
    """A program that is right passes the strict checks."""
    assert complaints(checker, "good.py", tmp_path) == (0, [])


@pytest.mark.parametrize("checker", CHECKERS)
def test_mistakes_are_found(checker: str, tmp_path: Path) -> None:
    """Each mistake that a checker can see is found: choices, types, arguments, names of settings."""
    text = (TYPED / "wrong.py").read_text(encoding="utf-8").splitlines()
    wrong = [number for number, line in enumerate(text, 1) if line.endswith("# wrong")]

    assert complaints(checker, "wrong.py", tmp_path) == (1, wrong)
    assert len(wrong) == 10
