"""An object's numbers as Prometheus wants them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from gateway.metrics import table
from gateway.metrics.table import Described


class Scrape(Collector):
    """Asks for a number only when somebody asks for it."""

    def __init__(self, metrics: object) -> None:
        """`metrics` has the attributes that the table names."""
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        for described in table.METRICS:
            value = getattr(self._metrics, described.attribute)
            yield _family(described, value if isinstance(value, Mapping) else {(): value})


def _family(described: Described, values: Mapping[Any, Any]) -> Metric:
    name, help, names = described.name, described.help, described.labels
    if described.type == "histogram":
        histogram = HistogramMetricFamily(name, help, labels=names)
        for key, value in values.items():
            histogram.add_metric(key, buckets=value.buckets(), sum_value=value.sum)
        return histogram
    family = (CounterMetricFamily if described.type == "counter" else GaugeMetricFamily)(
        name, help, labels=names
    )
    for key, value in values.items():
        family.add_metric((key,) if isinstance(key, str) else key, value)
    return family
