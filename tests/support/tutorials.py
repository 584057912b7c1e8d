"""A tutorial as its reader does it: files are saved and changed, commands are typed, and screens are compared.

An HTML comment above each code block of the page says what the block is:

``<!-- file: NAME -->``
    a file to save
``<!-- change: NAME -->``
    a change of a file, as a diff of one hunk
``<!-- keeps: NAME -->``
    a command that goes on running, and the first lines of its output
``<!-- shows: NAME -->``
    further lines of its output, since those that were last seen
``<!-- next: NAME -->``
    lines of its output that come after this moment
``<!-- looks -->``
    commands that change nothing; each is repeated until its output is that of the page
``<!-- watches: TEXT -->``
    a command with a screen of its own, which shows this text and ends by the key q
``<!-- fails -->``
    commands of which the last one fails
``<!-- not run: REASON -->``
    commands that the reader types and a test does not

Without a comment, a block of ``console`` has commands that succeed, each followed by its output. The
comment ``<!-- interrupt: NAME NAME -->`` stands alone and presses Ctrl-C in the terminals of these
commands. Any other block is a failure, so that no part of a page is left untried by accident.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

from tests.support.server import environment
from tests.support.terminal import Terminal
from tests.support.waiting import CEILING, wait_until

_BLOCK = re.compile(
    r"^<!-- (?P<alone>interrupt: [^>]*) -->$"
    r"|(?:^<!-- (?P<what>[^>]*) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
_NUMBER = re.compile(r"(?<![\w.])0(?![\w.])|\d[\d.,:TZ-]*(?:µs|ms|s|m|h)?\b")
"""A number, duration or date. A zero that stands alone is itself: ``0 failures`` is what a page promises."""


@dataclass(frozen=True, slots=True)
class Block:
    """One block of a page: what its comment says (verb and object), its language and its text."""

    verb: str
    object: str
    language: str
    text: str


def blocks_of(page: str) -> list[Block]:
    """Return the blocks of a page, in order."""
    found = []
    for match in _BLOCK.finditer(page):
        verb, _, what = (match["alone"] or match["what"] or "run").partition(": ")
        found.append(Block(verb, what, match["language"] or "", match["text"] or ""))
    return found


def files_of(page: str) -> dict[str, str]:
    """Return the files that a page has its reader save, as they are before any change."""
    return {block.object: block.text for block in blocks_of(page) if block.verb == "file"}


def typed(text: str) -> list[tuple[str, str]]:
    """Return the commands of a block of ``console``, each with the output that the page shows."""
    parts = re.split(r"^\$ ", text, flags=re.MULTILINE)
    assert parts[0] == "", f"a block begins with output: {text!r}"
    return [(command, shown) for command, _, shown in (part.partition("\n") for part in parts[1:])]


def changed(text: str, diff: str) -> str:
    """Return a text after a diff of one hunk, whose old lines must stand in the text once."""
    lines = [line or " " for line in diff.splitlines()]
    old = "".join(f"{line[1:]}\n" for line in lines if line[0] in " -")
    new = "".join(f"{line[1:]}\n" for line in lines if line[0] in " +")
    assert text.count(old) == 1, f"what a page changes is not there once:\n{old}"
    return text.replace(old, new)


def pattern_of(shown: str) -> re.Pattern[str]:
    """Return what finds a screen of a page in real output: numbers and the widths of columns may be others.

    A number that has a line to itself is a result, and has to be the same, as has the number of a line in a
    traceback.
    """
    lines = []
    for line in shown.strip("\n").splitlines():
        is_result = line.strip().isdigit()
        words = [re.escape(line)] if is_result else _patterns_of_words(line.split())
        lines.append(rf"[ \t]*{'[ ]+'.join(words)}[ \t]*")
    return re.compile("^" + r"\n".join(lines) + "$", re.MULTILINE)


def _patterns_of_words(words: list[str]) -> list[str]:
    return [
        re.escape(word) if before == "line" else _pattern_of_word(word)
        for before, word in zip(["", *words], words, strict=False)
    ]


def _pattern_of_word(word: str) -> str:
    parts, end = [], 0
    for number in _NUMBER.finditer(word):
        parts.append(re.escape(word[end : number.start()]))
        parts.append("0" if number[0] == "0" else r"[\d.,:TZ-]+(?:µs|ms|s|m|h)?")
        end = number.end()
    return "".join([*parts, re.escape(word[end:])])


class Kept:
    """A command that goes on running in a terminal of the reader."""

    def __init__(self, command: str, folder: Path, environ: Mapping[str, str]) -> None:
        self.command = command
        self.path = folder / f".{command.rsplit(maxsplit=1)[-1]}.output"
        self._seen = 0
        with self.path.open("wb") as output:
            self.popen = subprocess.Popen(
                ["bash", "-c", f"exec {command}"],
                cwd=folder,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        """What the command has written, standard error included."""
        return self.path.read_text(errors="replace")

    def wait_shown(self, shown: str) -> None:
        """Wait for each line of a screen in what was written since the last one.

        The lines may come in another order and have others between them, because several processes write
        them.
        """
        patterns = [pattern_of(line) for line in shown.splitlines()]

        def ends() -> list[int]:
            has_ended = self.popen.poll() is not None
            found = [pattern.search(self.output, self._seen) for pattern in patterns]
            assert all(found) or not has_ended, f"{self.command} has ended:\n{self.output}"
            return [one.end() for one in found if one] if all(found) else []

        self._seen = max(
            wait_until(
                ends, lambda: f"of {self.command}:\n{shown}\nwhich has written:\n{self.output}"
            )
        )

    def forget(self) -> None:
        """Pass over what was written so far: the next screen has to come after this."""
        self._seen = len(self.output)

    def wait_listening(self) -> None:
        """Wait until the command listens on a port, for one that says nothing."""
        process = psutil.Process(self.popen.pid)
        wait_until(
            lambda: any(one.status == psutil.CONN_LISTEN for one in process.net_connections("tcp")),
            lambda: f"{self.command} listens; it has written:\n{self.output}",
        )

    def interrupt(self) -> None:
        """Press Ctrl-C, which reaches the whole group, and wait for the end."""
        os.killpg(self.popen.pid, signal.SIGINT)
        self.popen.wait(CEILING)

    def end(self) -> None:
        """End the command if it runs, with everything that it has started."""
        if self.popen.poll() is None:
            self.popen.terminate()
            try:
                self.popen.wait(CEILING)
            except subprocess.TimeoutExpired:
                os.killpg(self.popen.pid, signal.SIGKILL)
                self.popen.wait()


class Reader:
    """``with Reader(page, folder, home, names) as reader: reader.do_all()`` does what a page says.

    folder: where the files are saved. home: the folder as the page names it. names: what is written in place of words of the page, such as its
    ports and the name of its pool, because other tests run at the same time on this machine.
    """

    def __init__(self, page: str, folder: Path, home: str, names: Mapping[str, str]) -> None:
        for old, new in names.items():
            page = re.sub(rf"(?<![\w.]){re.escape(old)}(?![\w.])", new, page)
        self.blocks = blocks_of(page)
        self.folder = folder
        self._home = home
        self.terminals: dict[str, Kept] = {}
        self._environ = environment()
        self._environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        for terminal in self.terminals.values():
            terminal.end()

    def do_all(self) -> None:
        """Do every block of the page, in order."""
        for block in self.blocks:
            self.do(block)

    def do(self, block: Block) -> None:
        """Do what one block says."""
        does: dict[str, Callable[[Block], None]] = {
            "file": self._save,
            "change": self._change,
            "keeps": self._keep,
            "shows": self._expect,
            "next": self._expect,
            "interrupt": self._interrupt,
            "run": self._run,
            "fails": self._run,
            "looks": self._look,
            "watches": self._watch,
            "not run": lambda block: None,
        }
        assert block.verb in does, f"no comment of a tutorial: {block.verb}"
        does[block.verb](block)

    def _save(self, block: Block) -> None:
        (self.folder / block.object).write_text(block.text)

    def _change(self, block: Block) -> None:
        path = self.folder / block.object
        path.write_text(changed(path.read_text(), block.text))

    def _keep(self, block: Block) -> None:
        ((command, shown),) = typed(block.text)
        terminal = self.terminals[block.object] = Kept(command, self.folder, self._environ)
        if shown:
            terminal.wait_shown(shown)
        else:
            terminal.wait_listening()

    def _expect(self, block: Block) -> None:
        terminal = self.terminals[block.object]
        if block.verb == "next":
            terminal.forget()
        terminal.wait_shown(block.text)

    def _interrupt(self, block: Block) -> None:
        for name in block.object.split():
            self.terminals.pop(name).interrupt()

    def _run(self, block: Block) -> None:
        assert block.language == "console", f"a block without a comment: {block.text}"
        commands = typed(block.text)
        for number, (command, shown) in enumerate(commands, 1):
            status, output = self._type(command)
            fails = block.verb == "fails" and number == len(commands)
            assert (status != 0) == fails, f"{command} ends with {status}:\n{output}"
            assert _is(output, shown), f"{command} shows\n{output}\nand not\n{shown}"

    def _look(self, block: Block) -> None:
        for command, shown in typed(block.text):
            self._repeat(command, shown)

    def _repeat(self, command: str, shown: str) -> None:
        """Type a command until it shows what the page shows."""
        outputs = [""]

        def is_shown() -> bool:
            outputs[0] = self._type(command)[1]
            return _is(outputs[0], shown)

        wait_until(is_shown, lambda: f"{command} shows\n{shown}\nand not\n{outputs[0]}", poll=0.05)

    def _watch(self, block: Block) -> None:
        ((command, _),) = typed(block.text)
        _prefork, *arguments = shlex.split(command)
        with Terminal(arguments, self.folder) as terminal:
            terminal.wait_shown(block.object)
            terminal.press("q")
            assert terminal.wait() == 0

    def _type(self, command: str) -> tuple[int, str]:
        """Type a command; return its exit status and its output, as a reader in the page's folder has it."""
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self._environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=2 * CEILING,
            check=False,
        )
        return done.returncode, done.stdout.replace(str(self.folder), self._home)


def _is(output: str, shown: str) -> bool:
    return pattern_of(shown).fullmatch(output.strip("\n")) is not None
