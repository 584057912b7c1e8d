"""What the error of a failed take means: the table of errno, and the one function that reads it (pure).

A worker takes a request with ``get_request()``, which for a plain server is ``accept()`` or
``recvfrom()``. When the call fails, the worker must know one thing: whether trying again at once is
right, useless, or the end of this worker. The error number decides, with two facts beside it, because
``accept()`` asks for a descriptor and for memory before it looks whether a client waits: with an
empty queue the same EMFILE is of no importance.
"""

from __future__ import annotations

import enum
import errno


class Meaning(enum.Enum):
    """What a failed take means for the worker."""

    SIBLING = enum.auto()
    """Nothing is queued; usually another worker was faster. Wait for the next event."""
    CLIENT_GONE = enum.auto()
    """The call used up one client, who is gone. The next one may be waiting behind it."""
    NOTHING = enum.auto()
    """There is nothing to take yet, and the source itself waits before it is asked again."""
    SHORTAGE = enum.auto()
    """The next call will fail in the same way. Pause before it."""
    DRAINED = enum.auto()
    """The worker is draining the queue, and the queue is empty."""
    BROKEN = enum.auto()
    """This process has lost its listening socket. Only a new worker has it again."""


MEANINGS = {
    # "No connections are present to be accepted."
    errno.EAGAIN: Meaning.SIBLING,
    # "A connection has been aborted": its client has reset it while it was queued.
    errno.ECONNABORTED: Meaning.CLIENT_GONE,
    # "Firewall rules forbid connection."
    errno.EPERM: Meaning.CLIENT_GONE,
    # "Linux accept() passes already-pending network errors on the new socket as an error code from
    # accept()"; a program should "treat them like EAGAIN by retrying". The manual has this list.
    errno.ENETDOWN: Meaning.CLIENT_GONE,
    errno.EPROTO: Meaning.CLIENT_GONE,
    errno.ENOPROTOOPT: Meaning.CLIENT_GONE,
    errno.EHOSTDOWN: Meaning.CLIENT_GONE,
    errno.ENONET: Meaning.CLIENT_GONE,
    errno.EHOSTUNREACH: Meaning.CLIENT_GONE,
    errno.EOPNOTSUPP: Meaning.CLIENT_GONE,
    errno.ENETUNREACH: Meaning.CLIENT_GONE,
    # recvfrom(): "A remote host refused to allow the network connection": an earlier reply of ours
    # came back, and the error is reported once.
    errno.ECONNREFUSED: Meaning.CLIENT_GONE,
    # "The per-process limit on the number of open file descriptors has been reached."
    errno.EMFILE: Meaning.SHORTAGE,
    # "The system-wide limit on the total number of open files has been reached."
    errno.ENFILE: Meaning.SHORTAGE,
    # "Not enough free memory", or the socket buffer limits are reached.
    errno.ENOBUFS: Meaning.SHORTAGE,
    errno.ENOMEM: Meaning.SHORTAGE,
    # "Socket is not listening for connections": a handler has shut it down, for all processes. A Unix
    # socket whose intake the master has closed says so, too, once its queue is empty.
    errno.EINVAL: Meaning.SHORTAGE,
    # "sockfd is not an open file descriptor": a handler has closed it in this process.
    errno.EBADF: Meaning.BROKEN,
    # "The file descriptor sockfd does not refer to a socket": closed, and the number used again.
    errno.ENOTSOCK: Meaning.BROKEN,
}
"""What each error number means while the worker serves, with the reason that accept(2) or recv(2) gives.

Every other number of an OSError counts as CLIENT_GONE, as the manual asks of unknown network errors.
"""


def meaning(error: Exception, *, draining: bool, empty: bool) -> Meaning:
    """Return what a failed take means.

    draining: whether the worker is to leave once nothing is queued. empty: whether the queue is
    known to be empty; read only while draining.

    An exception that is no OSError comes from a ``get_request()`` of the program's own. It would
    most likely be raised again at once, so that it counts as a shortage.
    """
    if isinstance(error, BlockingIOError):  # a program may raise one that has no errno
        return Meaning.SIBLING
    if not isinstance(error, OSError):
        return Meaning.SHORTAGE
    found = MEANINGS.get(error.errno or 0, Meaning.CLIENT_GONE)
    if draining and found is Meaning.SHORTAGE and (empty or error.errno == errno.EINVAL):
        return Meaning.DRAINED
    return found
