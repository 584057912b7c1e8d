"""The signature of a server class, for ``inspect``, ``help()``, editors and ``prefork check``.

``PreForkingMixIn`` has a ``__new__()`` that accepts everything and passes nothing on. ``inspect``
looks at ``__new__()`` before it looks at ``__init__()``, so it would show ``(*args, **kwargs)`` for
every server class. What a caller has to give is what ``__init__()`` of the class behind the mix-in
takes. ``inspect`` asks for an attribute ``__signature__`` first, and this module provides it.
"""

from __future__ import annotations

from typing import Any


class SignatureOfInit:
    """The attribute ``__signature__`` of a class: the signature of its ``__init__()`` without ``self``.

    The attribute is computed when it is asked for, because a program rarely asks and ``inspect``
    takes milliseconds to import. An instance has no such attribute.
    """

    def __init__(self, new: Any) -> None:
        self._new = new

    def __get__(self, instance: object, owner: type) -> Any:
        """Return the signature; AttributeError has ``inspect`` go on as for any other class.

        A class with a ``__new__()`` of its own is such a case, and an ``__init__()`` in C that has
        no signature is another one.
        """
        if instance is not None or owner.__new__ is not self._new:
            raise AttributeError("__signature__")
        import inspect  # noqa: PLC0415 - see above

        try:
            whole = inspect.signature(owner.__init__)  # type: ignore[misc]  # of this very class
        except (TypeError, ValueError):
            raise AttributeError("__signature__") from None
        return whole.replace(parameters=list(whole.parameters.values())[1:])
