"""What Prometheus is given."""

from __future__ import annotations

from gateway.metrics import METRICS, Metrics
from gateway.metrics.scrape import Scrape


def test_numbers_are_read_when_asked_for() -> None:
    """One family for each line of the table, with what the attribute is by then."""
    metrics = Metrics(["eu"], "1")
    scrape = Scrape(metrics)
    metrics.client_audio_bytes += 5
    metrics.results.add("final")
    metrics.dial_seconds.observe(0.01)
    families = {family.name: family for family in scrape.collect()}
    assert len(families) == len(METRICS)
    samples = [sample for family in families.values() for sample in family.samples]
    values = {(sample.name, *sample.labels.values()): sample.value for sample in samples}
    names = {described.attribute: described.name.removesuffix("_total") for described in METRICS}
    assert values[(f"{names['client_audio_bytes']}_total",)] == 5
    assert values[f"{names['results']}_total", "final"] == 1
    assert values[(f"{names['dial_seconds']}_count",)] == 1
