"""Counting, and what a scrape shows of it."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.metrics import METRICS, PROCESS_METRICS
from gateway.metrics.numbers import Counts, Histogram, Metrics


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(["global", "eu"], "1.2.3")


def samples(metrics: Metrics) -> dict[str, float]:
    """Every sample of a scrape as `name{label="value"}`."""
    body, _ = metrics.render("")
    return {
        f"{sample.name}{{{','.join(f'{k}={v}' for k, v in sorted(sample.labels.items()))}}}": sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def test_every_metric_of_the_table_is_published(metrics: Metrics) -> None:
    """The table and a scrape name the same metrics, with the same types and help."""
    metrics.transcription_ended("completed", "nova-3", "eu")
    metrics.latency_of("nova-3").observe(1)
    text = metrics.render("")[0].decode()
    published = {line.split(" ", 3)[2] for line in text.splitlines() if line.startswith("# HELP")}
    assert published == {described.name for described in (*METRICS, *PROCESS_METRICS)}
    for described in METRICS:
        assert f"# HELP {described.name} {described.help}\n" in text
        assert f"# TYPE {described.name} {described.type}\n" in text


def test_labels_are_those_of_the_table(metrics: Metrics) -> None:
    """Each sample has exactly the labels that the table gives it."""
    metrics.transcription_ended("completed", "nova-3", "eu")
    metrics.latency_of("nova-3").observe(1)
    labels = {described.name: set(described.labels) for described in METRICS}
    for family in text_string_to_metric_families(metrics.render("")[0].decode()):
        for sample in family.samples:
            name = sample.name if sample.name in labels else family.name
            if name in labels:
                assert set(sample.labels) - {"le"} == labels[name]


def test_plain_numbers(metrics: Metrics) -> None:
    """What is added to an attribute is what a scrape shows."""
    metrics.sessions_active += 2
    metrics.client_audio_bytes += 160
    metrics.client_audio_seconds += 0.02
    metrics.results.add("final")
    metrics.gap_seconds.add("upstream_hole", 1.5)
    shown = samples(metrics)
    assert shown["gw_sessions_active{}"] == 2
    assert shown["gw_client_audio_bytes_total{}"] == 160
    assert shown["gw_client_audio_seconds_total{}"] == 0.02
    assert shown["gw_results_total{kind=final}"] == 1
    assert shown["gw_results_total{kind=interim}"] == 0
    assert shown["gw_gap_seconds_total{reason=upstream_hole}"] == 1.5
    assert next(value for name, value in shown.items() if "1.2.3" in name) == 1


def test_histogram() -> None:
    """An observation on a bound belongs to it; the last bucket takes the rest."""
    histogram = Histogram((1.0, 2.0))
    for seconds in (0.5, 1.0, 1.5, 9.0):
        histogram.observe(seconds)
    assert histogram.buckets() == [("1.0", 2), ("2.0", 3), ("+Inf", 4)]
    assert histogram.sum == 12.0


def test_latency_by_model(metrics: Metrics) -> None:
    """Latency has a series for each public model, and Deepgram's default where none is named."""
    metrics.latency_of("nova-3").observe(3)
    metrics.latency_of(None).observe(3)
    shown = samples(metrics)
    assert shown["transcription_latency_seconds_bucket{le=2.0,model=nova-3}"] == 0
    assert shown["transcription_latency_seconds_bucket{le=5.0,model=nova-3}"] == 1
    assert shown["transcription_latency_seconds_count{model=base}"] == 1
    assert shown["transcription_latency_seconds_sum{model=nova-3}"] == 3


def test_transcriptions(metrics: Metrics) -> None:
    """A transcription counts under its outcome, model and region."""
    metrics.transcription_ended("completed", "nova-3", "eu")
    metrics.transcription_ended("completed", "nova-3", "eu")
    metrics.transcription_ended("refused", None, None)
    shown = samples(metrics)
    assert shown["transcription_requests_total{model=nova-3,region=eu,status=completed}"] == 2
    assert shown["transcription_requests_total{model=base,region=other,status=refused}"] == 1


def test_series_are_bounded(metrics: Metrics) -> None:
    """Ten thousand odd values of every label make one series more, not ten thousand (faults.md 59)."""
    values = [getattr(metrics, described.attribute) for described in METRICS]
    counts = [value for value in values if isinstance(value, Counts)]
    assert len(counts) == 23
    before = len(samples(metrics))
    for number in range(10_000):
        odd = f'odd"{number}\n'
        metrics.transcription_ended(odd, odd, odd)
        metrics.latency_of(odd).observe(1)
        for count in counts:
            count.add(odd)
    latency_series = 9 + 2
    assert len(samples(metrics)) == before + 1 + latency_series
    assert all(count["other"] == 10_000 for count in counts)


def test_refreshed_on_scrape(metrics: Metrics) -> None:
    """What is read rather than counted is read when a scrape comes."""
    metrics.on_scrape(lambda: setattr(metrics, "log_lines_dropped", 7))
    assert samples(metrics)["gw_log_lines_dropped_total{}"] == 7


def test_formats(metrics: Metrics) -> None:
    """OpenMetrics for who asks for it, the text format for all others."""
    assert metrics.render("*/*")[1].startswith("text/plain; version=0.0.4")
    body, content_type = metrics.render("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert body.endswith(b"# EOF\n")


def test_open_files_are_shown(metrics: Metrics) -> None:
    """Descriptors and their limit are there: running out of them shows nowhere else."""
    shown = samples(metrics)
    assert 0 < shown["process_open_fds{}"] < shown["process_max_fds{}"]


def test_no_global_registry() -> None:
    """Two processes' worth of metrics live side by side."""
    one, two = Metrics(["a"], "1"), Metrics(["b"], "1")
    one.sessions_active = 5
    assert samples(two)["gw_sessions_active{}"] == 0
