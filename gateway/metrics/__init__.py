"""What Gateway counts, and how it is published."""

from gateway.metrics.numbers import Counts, Histogram, Metrics
from gateway.metrics.table import (
    METRICS,
    PROCESS_METRICS,
    Described,
    answer_label,
    handshake_label,
    model_label,
)

__all__ = [
    "METRICS",
    "PROCESS_METRICS",
    "Counts",
    "Described",
    "Histogram",
    "Metrics",
    "answer_label",
    "handshake_label",
    "model_label",
]
