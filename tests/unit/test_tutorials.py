"""How the tests read a tutorial: its blocks, its changes, and when a screen is the one that the page shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.tutorials import Block, Reader, blocks_of, changed, pattern_of, typed

pytestmark = pytest.mark.once  # tests of tests

PAGE = """\
Save this:

<!-- file: app.py -->
```python
one = 1
two = 2
```

<!-- change: app.py -->
```diff
 one = 1
-two = 2
+two = 3
+three = 4
```

<!-- interrupt: server load -->

```console
$ first
$ second 9000
9000 things
and more
```
"""


def test_blocks_of_a_page() -> None:
    """Each block has the verb and the object of its comment; a block without one has commands."""
    file, change, interrupt, run = blocks_of(PAGE)

    assert file == Block("file", "app.py", "python", "one = 1\ntwo = 2\n")
    assert changed(file.text, change.text) == "one = 1\ntwo = 3\nthree = 4\n"
    assert interrupt == Block("interrupt", "server load", "", "")
    assert run.verb == "run"
    assert typed(run.text) == [("first", ""), ("second 9000", "9000 things\nand more\n")]


def test_change_of_what_is_not_there_is_a_failure() -> None:
    """A change whose old lines are not in the file once, as another step has left it, is noticed."""
    for text in ("two = 5\n", "two = 2\ntwo = 2\n"):
        with pytest.raises(AssertionError, match="not there once"):
            changed(text, "-two = 2\n+two = 3\n")


def test_block_without_a_meaning_is_a_failure(tmp_path: Path) -> None:
    """A comment that is misspelt, and a block of code that nothing is done with, are noticed."""
    for page in ("<!-- filed: app.py -->\n```python\none\n```\n", "```python\none\n```\n"):
        with (
            Reader(page, tmp_path, "", {}) as reader,
            pytest.raises(AssertionError, match=r"comment"),
        ):
            reader.do_all()


def test_screens_are_compared_but_for_their_numbers() -> None:
    """Numbers, times and the widths of columns may be others; words and a zero that stands alone may not."""
    shown = "2026-11-29T16:43:24.645Z INFO  pid=29515 on 127.0.0.1:9000, p50 59ms\n37 answers, 0 failures\n"
    pattern = pattern_of(shown)

    assert pattern.search(
        "2027-01-02T03:04:05.006Z INFO pid=1 on 127.0.0.1:80,   p50 1.2s\n5 answers, 0 failures\n"
    )
    for real in (
        shown.replace("0 failures", "1 failures"),
        shown.replace("INFO", "ERROR"),
        shown.replace("37 ", ""),
        shown.replace("\n", "\nanother line\n", 1),
    ):
        assert not pattern.search(real), real
    assert pattern_of("2262\n").search("2262\n")
    assert not pattern_of("2262\n").search("2263\n")
    traceback = '  File "primes.py", line 28, in <module>\n'
    assert pattern_of(traceback).search(traceback)
    assert not pattern_of(traceback).search(traceback.replace("28", "27"))


def test_names_of_a_page_are_replaced_as_words(tmp_path: Path) -> None:
    """A port or a name gets its replacement wherever it stands alone, and parts of other words do not."""
    page = "```console\n$ ask 127.0.0.1:9000 counter.py counter 19000\n```\n"

    (block,) = Reader(page, tmp_path, "", {"9000": "81", "counter": "pool-81"}).blocks

    assert block.text == "$ ask 127.0.0.1:81 counter.py pool-81 19000\n"
