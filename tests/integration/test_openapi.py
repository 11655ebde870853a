"""Every operation of `/openapi.json`, driven by schemathesis against a running gateway and emulator.

Whatever is sent: no 5xx, answers that match their schemas, and refusals for what does not match its own.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from tests.fakes.stand import Stand

EXAMPLES = 12
"""Of each operation: seconds, for a commit."""
SKIPPED = ("/v1/jobs/{id}/events",)
"""Lasts as long as its job."""


def _drive(url: str) -> dict[str, int]:
    """How often each operation was called."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    called: dict[str, int] = {}
    found: Any
    for found in schema.get_all_operations():
        operation = found.ok()
        assert any(status.startswith("2") for status in operation.definition.raw["responses"]), (
            operation.label
        )
        if operation.path in SKIPPED:
            continue
        called[operation.label] = 0

        @hypothesis.settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(case=operation.as_strategy())
        def ask(case: Any) -> None:
            called[case.operation.label] += 1
            response = case.call(base_url=url, timeout=20)
            checks = [not_a_server_error, status_code_conformance, response_schema_conformance]
            case.validate_response(response, checks=checks)

        ask()
    return called


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_every_operation_keeps_its_word(stand: Stand, tmp_path: Path) -> None:
    """Generated requests, right and wrong, to all of them."""
    emulator = await stand.emulator()
    gateway = await stand.gateway(
        emulator.url,
        store={"url": f"sqlite:///{tmp_path}/gateway.db"},
        prerecorded={"spool_dir": str(tmp_path / "spool")},
        jobs={"starts_per_minute": 0},
    )
    host, port = gateway.sidecar_address
    called = await asyncio.to_thread(_drive, f"http://{host}:{port}")
    assert len(called) >= 12
    assert all(called.values()), called
