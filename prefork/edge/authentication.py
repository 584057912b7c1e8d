"""Authentication: who a client is, asked before its handler runs (worker)."""

from __future__ import annotations

import weakref
from typing import Any

from prefork.edge.edge import Step
from prefork.edge.passage import Passage, Refused
from prefork.workers.errors import AuthenticationError
from prefork.workers.states import Rejection


def authentication_step(server: Any) -> Step:
    """Return the step that calls ``authenticate()`` of the server."""
    ref = weakref.ref(server)  # the server has the edge, and the edge must not keep the server

    def authenticate(passage: Passage) -> None:
        this: Any = ref()
        try:
            identity = this.authenticate(passage.timed(), passage.address())
        except AuthenticationError as error:
            raise Refused(Rejection.AUTHENTICATION, str(error)) from None
        if identity is not None:
            if not isinstance(identity, str):
                raise TypeError(
                    f"authenticate() must return a str or None, not {type(identity).__name__}"
                )
            passage.identity = identity

    return authenticate
