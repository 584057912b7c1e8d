"""What a pool is, in words: a text on the scoreboard, for its writer and for every reader.

The master writes the text once, before its first worker, as JSON. The metrics process, ``prefork
status`` and the other commands read it from shared memory. A worker can write anything there, and a
command can meet a pool of another version, so a reader takes the text for what it is: a stranger's.
Reading it never raises, and whatever comes out is of these types, bounded, and safe to show.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from prefork.workers.text import escaped

MOST_LISTENERS: Final = 100
MOST_SETTINGS: Final = 200

LONGEST_TEXT: Final = 500
"""Characters of one text; the path of a Unix socket has 108 bytes at most."""


class ListenerDescription(msgspec.Struct, frozen=True):
    """One listening socket.

    name: its address. kind: how requests are taken from it (``workers.listener.Kind``). family and
    inode: by what the kernel's tables know it. server: the name of the server's class.
    """

    name: str = ""
    kind: Literal["stream", "datagram", "other"] = "other"
    family: Literal["inet", "inet6", "unix", "other"] = "other"
    inode: int = 0
    server: str = ""

    def bounded(self) -> ListenerDescription:
        """Return the description with bounded and printable texts."""
        return ListenerDescription(
            _shown(self.name), self.kind, self.family, self.inode, _shown(self.server)
        )


class CertificateDescription(msgspec.Struct, frozen=True):
    """One certificate that the pool shows its clients. file: its path. ends: Unix time."""

    file: str = ""
    ends: float = 0.0


class PoolDescription(msgspec.Struct, frozen=True):
    """One pool. An empty one stands for a pool that has not been described, or not legibly.

    name: the setting, None for a pool without a name. version, python: what serves. settings: the
    text that a user would write to get the value, ``-`` for none. metrics, agent: where the metrics
    process listens, with its real port; None where it does not. certificates: each file once.
    """

    name: str | None = None
    version: str = ""
    python: str = ""
    listeners: tuple[ListenerDescription, ...] = ()
    settings: Mapping[str, str] = {}
    metrics: str | None = None
    certificates: tuple[CertificateDescription, ...] = ()
    agent: str | None = None

    @classmethod
    def from_text(cls, text: str) -> PoolDescription:
        """Return what a text says; an empty description where it makes no sense."""
        try:
            return msgspec.json.decode(text, type=cls).bounded()
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return cls()

    def to_text(self) -> str:
        """Return the text for the scoreboard, bounded as every reader bounds it (master)."""
        return msgspec.json.encode(self.bounded()).decode()

    def bounded(self) -> PoolDescription:
        """Return the description with as many entries, and texts as long, as the bounds allow."""
        settings = itertools.islice(self.settings.items(), MOST_SETTINGS)
        return PoolDescription(
            name=_shown(self.name) if self.name else None,
            version=_shown(self.version),
            python=_shown(self.python),
            listeners=tuple(one.bounded() for one in self.listeners[:MOST_LISTENERS]),
            settings={_shown(key): _shown(value) for key, value in settings},
            metrics=_shown(self.metrics) if self.metrics else None,
            certificates=tuple(
                CertificateDescription(_shown(one.file), one.ends)
                for one in self.certificates[:MOST_LISTENERS]
            ),
            agent=_shown(self.agent) if self.agent else None,
        )


def _shown(text: str) -> str:
    return escaped(text, LONGEST_TEXT)
