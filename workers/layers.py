"""Where the value of a setting comes from: raw values arrive in layers, and the last layer wins.

A layer is one place that gives values: the class attributes, a file, the environment, the flags.
Every value is checked on its own, also a value that a later layer replaces, because a mistake
should not be hidden until the day on which the flag is left out. An error names the key, the value,
the place and what is allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from prefork.workers.errors import SettingsError
from prefork.workers.machine import Usable, usable_cpus
from prefork.workers.settings import (
    AUTO,
    ROWS,
    Settings,
    no_such_setting,
    refuse_contradictions,
    refuse_late_soft_timeout,
    room_for,
)

DEFAULT: Final = "default"
"""The origin of a value that no layer has given."""


class Layer(msgspec.Struct, frozen=True):
    """Raw values from one place.

    source: returns the words for where the value of a key came from. text: whether all values are
    text, as in flags and environment variables.
    """

    values: Mapping[str, object]
    source: Callable[[str], str]
    text: bool = False


class Resolved(msgspec.Struct, frozen=True):
    """Settings, and where each of them came from.

    origins: the words for the place, by key; DEFAULT where no layer gave a value. cpus: what the
    number of workers was counted from; None where the number was given.
    """

    settings: Settings
    origins: Mapping[str, str]
    cpus: Usable | None


def merge(layers: Sequence[Layer]) -> tuple[dict[str, Any], dict[str, str]]:
    """Check every value on its own; return the last value and its origin, by key.

    Raises SettingsError for an unknown key and for a value that cannot be. The command line calls
    this before it loads the target, whose class attributes are a layer, too.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        for key, raw in layer.values.items():
            values[key] = _checked(key, raw, layer)
            origins[key] = layer.source(key)
    return values, origins


def resolve(layers: Sequence[Layer], *, cpus: Callable[[], Usable] = usable_cpus) -> Resolved:
    """Make settings of layers, given from the weakest to the strongest.

    AUTO as the number of workers becomes one for each usable CPU, at most ``max_children``. Where no layer
    gives ``max_children``, it is large enough for the workers that were asked for. Raises SettingsError as ``merge()`` does, and for values that are impossible together. cpus: counts the
    usable CPUs.
    """
    values, origins = merge(layers)
    counted = cpus() if values.get("workers", AUTO) == AUTO else None
    wanted = values["workers"] if counted is None else counted.count
    room = room_for(wanted, follows_load=values.get("min_spare") is not None)
    most = values.setdefault("max_children", room)
    if counted is not None:
        values["workers"] = min(counted.count, most)

    def source(key: str) -> str:
        return origins.get(key, DEFAULT)

    refuse_contradictions(
        values["workers"], most, values.get("min_spare"), values.get("max_spare"), source
    )
    refuse_late_soft_timeout(values.get("soft_timeout"), values.get("request_timeout"), source)
    settings = Settings(**values)
    automatic = {"workers"} if counted is not None else set()
    if "max_children" not in origins:
        automatic.add("max_children")
    msgspec.structs.force_setattr(settings, "automatic", frozenset(automatic))
    return Resolved(settings, dict.fromkeys(ROWS, DEFAULT) | origins, counted)


def attributes_layer(server: object) -> Layer:
    """Return the settings that a server, or a class of servers, has as attributes.

    A value that equals the default is left out: prefork's own classes have all defaults as
    attributes, and a weaker layer may still give another value.
    """
    owner = server if isinstance(server, type) else type(server)
    values: dict[str, object] = {}
    for row in ROWS.values():
        if row.attribute is None:
            continue
        value = getattr(server, row.attribute, row.default)
        # A property has its value on the server object only, and is read there.
        if value != row.default and not isinstance(value, property):
            values[row.key] = value
    return Layer(values, lambda key: f"attribute {owner.__name__}.{ROWS[key].attribute}")


def from_attributes(server: object, *, cpus: Callable[[], Usable] = usable_cpus) -> Resolved:
    """Return the settings of a server, or of a class of servers; raises SettingsError.

    The master calls this when ``serve_forever()`` begins, so that attributes which were set until
    then count.
    """
    return resolve([attributes_layer(server)], cpus=cpus)


def of_one_server(
    server: object, keys: Sequence[str], given: Settings | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return values and origins, by key, of settings of which each server has its own; raises SettingsError.

    An attribute of the server counts first. given: the settings of the pool, where the program has given
    some. They count where the attribute has the default. The two are compared by value, because the default
    of a server class and that of the table are different objects.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for key in keys:
        row = ROWS[key]
        name = row.attribute or key
        # While the object is made, a property may ask for what __init__() has not set yet.
        raw = getattr(server, name, row.default)
        origins[key] = f"attribute {type(server).__name__}.{name}"
        if raw == row.default and given is not None:
            raw, origins[key] = getattr(given, key), f"Settings({key}=…)"
        values[key] = raw if raw is row.default else row.converted(raw, origins[key])
    return values, origins


def _checked(key: str, raw: object, layer: Layer) -> Any:
    row = ROWS.get(key)
    if row is None:
        raise SettingsError(key, raw, layer.source(key), no_such_setting(key))
    if key == "workers" and raw == AUTO:
        return AUTO
    return row.converted(raw, layer.source(key), text=layer.text)
