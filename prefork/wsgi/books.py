"""What the books of a worker learn of each answer: the count by method and status, and the access log (worker).

The handler reports an answer after it was sent and before the request ends, so that the line of the access log,
which is written at the end of the request, has everything. Outside of a pool there are no books.
"""

from __future__ import annotations

from prefork.workers.answers import Answer, place_of
from prefork.workers.states import Rejection
from prefork.workers.worker.side import current_account
from prefork.wsgi.head import Head


def report_answer(
    head: Head | None, status: str, sent: int, *, line: bytes = b"", client: str | None = None
) -> None:
    """Report the answer to a request.

    head: None for a request that could not be read; its first line is then ``line``, b"" where not even that
    arrived. status: begins with three digits. sent: bytes of the body. client: for whom the request is, where a
    proxy has said so.
    """
    account = current_account()
    if account is None:
        return
    method = line.partition(b" ")[0].decode("latin-1") if head is None else head.method
    account.count_answer(place_of(method, status))
    if account.wants_answers:
        account.note_answer(_answer_of(head, status[:3], sent, line, client))


def report_refusal() -> None:
    """Report that the request is refused, and not served by the application."""
    account = current_account()
    if account is not None:
        account.refuse(Rejection.REQUEST)


def _answer_of(
    head: Head | None, status: str, sent: int, line: bytes, client: str | None
) -> Answer:
    if head is None:
        return Answer(target=line.decode("latin-1"), status=status, sent=sent)
    found = dict(reversed(head.fields))  # of several fields with one name, the first counts
    return Answer(
        method=head.method,
        target=head.target,
        protocol="HTTP/1.1" if head.is_newest else "HTTP/1.0",
        status=status,
        sent=sent,
        client=client,
        referer=_text(found.get(b"referer")),
        user_agent=_text(found.get(b"user-agent")),
    )


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")
