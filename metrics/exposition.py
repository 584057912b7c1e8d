"""The text of a scrape: what prometheus_client writes, in a fifth of the time and less.

Its encoders escape every name of every sample anew: 60 ms for the 16 000 samples of a thousand
slots, and 130 in OpenMetrics, the format that Prometheus asks for. A scrape of that pool is to
take 20 in all. Families with more than names, labels and values are left to prometheus_client.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from prometheus_client import exposition as client
from prometheus_client.registry import Collector

from prefork.metrics.collector import PoolFamily

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric as Family

Encoder = Callable[[Collector], bytes]

_SIMPLE = frozenset({"counter", "gauge", "histogram", "info", "summary"})
_END = b"# EOF\n"
"""The last line of OpenMetrics."""

_OTHER_NAMES = ("escaping=dots", "escaping=values")
"""Ways to escape names, by the content type, in which plain names of ours are changed as well."""


def choose_encoder(accept: str) -> tuple[Encoder, str]:
    """Return what turns a registry into text, and the content type, as ``prometheus_client`` does.

    accept: the request's header Accept.
    """
    encode, content_type = client.choose_encoder(accept)
    if any(word in content_type for word in _OTHER_NAMES):
        return encode, content_type
    openmetrics = content_type.startswith("application/openmetrics-text")
    return functools.partial(_encode, openmetrics=openmetrics, plan_b=encode), content_type


def _encode(registry: Collector, *, openmetrics: bool, plan_b: Encoder) -> bytes:
    parts = [
        _written(family, openmetrics).encode() if _is_simple(family) else _by(plan_b, family)
        for family in registry.collect()
    ]
    return b"".join(parts) + (_END if openmetrics else b"")


def _is_simple(family: Family) -> bool:
    """Tell whether all lines of a family are names, labels and values, as those of the pool's own."""
    if isinstance(family, PoolFamily):
        return True
    return family.type in _SIMPLE and not any(
        one.timestamp is not None
        or one.exemplar is not None
        or one.native_histogram is not None
        or one.name.endswith("_created")
        for one in family.samples
    )


class _Alone(Collector):
    """A registry of one family that was collected already."""

    def __init__(self, family: Family) -> None:
        self._family = family

    def collect(self) -> list[Family]:
        """Return it."""
        return [self._family]


def _by(plan_b: Encoder, family: Family) -> bytes:
    return plan_b(_Alone(family)).removesuffix(_END)


def _written(family: Family, openmetrics: bool) -> str:
    return _head(family, openmetrics) + _lines(family)


_SUFFIXES = {"counter": "_total", "info": "_info"}


def _head(family: Family, openmetrics: bool) -> str:
    """Return the comments above a family: OpenMetrics names it without what tells its type."""
    name, kind = family.name, family.type
    if openmetrics:
        unit = f"# UNIT {name} {family.unit}\n" if family.unit else ""
        return f"# HELP {name} {_escaped(family.documentation)}\n# TYPE {name} {kind}\n{unit}"
    name, text = name + _SUFFIXES.get(kind, ""), _without_line_ends(family.documentation)
    return f"# HELP {name} {text}\n# TYPE {name} {'gauge' if kind == 'info' else kind}\n"


def _lines(family: Family) -> str:
    if isinstance(family, PoolFamily) and family.metric.labels[:1] == ("slot",):
        # By far the most lines; their labels are numbers and words of ours, with nothing to escape.
        labels = ",".join(f'{label}="%s"' for label in family.metric.labels)
        line = f"{family.metric.name}{{{labels}}} %r\n"
        return "".join([line % row for row in family.rows])
    return "".join(
        [f"{one.name}{_labels(one.labels)} {_number(one.value)}\n" for one in family.samples]
    )


def _labels(labels: Mapping[str, str]) -> str:
    shown = ",".join([f'{name}="{_escaped(value)}"' for name, value in labels.items()])
    return f"{{{shown}}}" if shown else ""


_NO_NUMBERS = {"inf": "+Inf", "-inf": "-Inf", "nan": "NaN"}


def _number(value: float) -> str:
    shown = repr(float(value))
    return _NO_NUMBERS.get(shown, shown)


def _escaped(value: str) -> str:
    return _without_line_ends(value).replace('"', '\\"')


def _without_line_ends(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")
