"""``UrgentMixIn``: a handler that hears of urgent data while it works (worker)."""

from __future__ import annotations

from socketserver import BaseRequestHandler
from typing import TYPE_CHECKING

from prefork.workers.cancel import CancelReason, exception_for
from prefork.workers.worker.side import current_worker
from prefork.workers.worker.urgent import urgent


class UrgentMixIn(BaseRequestHandler if TYPE_CHECKING else object):  # type: ignore[misc]
    """Mix-in for handlers of streams that act on urgent data (``MSG_OOB``), such as telnet's and FTP's.

    Put the mix-in in front of ``StreamRequestHandler`` or another handler class::

        class Shell(prefork.UrgentMixIn, prefork.StreamRequestHandler):
            def handle_urgent(self, byte):
                raise Interrupted

    When the client sends an urgent byte, ``handle_urgent()`` is called within ``setup()`` or ``handle()``,
    between two bytecodes. It may raise an exception, which comes out of the line at which the handler is.

    Without the mix-in, an urgent byte is left alone. ``handle_urgent()`` is never called for an encrypted
    connection, in a thread, or outside of a worker.
    """

    def setup(self) -> None:
        """Have the kernel report urgent data to this process."""
        if current_worker() is not None:
            urgent.watch(self)
        super().setup()

    def finish(self) -> None:
        """Have it report no more."""
        urgent.forget()
        super().finish()

    def handle_urgent(self, byte: bytes) -> None:  # noqa: ARG002 - for overrides
        """Act on one urgent byte. By default it ends the request, with the reason ``urgent``.

        byte: the byte itself, which is no part of the stream. Where two urgent bytes come shortly one after
        the other, the first one becomes a part of the stream, as TCP says.
        """
        raise exception_for(CancelReason.URGENT, "")
