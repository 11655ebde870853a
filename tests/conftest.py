"""How hard hypothesis tries: HYPOTHESIS_PROFILE=deep for a night (tests/deep), the default for a commit.

And one PostgreSQL for all folders. With GATEWAY_TEST_COMPILED=1 nothing runs but on the compiled build.
"""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import HealthCheck, Phase, settings

from gateway import compiled
from tests.fakes.postgres import postgres  # noqa: F401 - a fixture for all folders, so that one server does
from tests.fakes.valkey import valkey_cluster, valkey_single  # noqa: F401 - the same

if os.environ.get("GATEWAY_TEST_COMPILED") and not compiled():
    raise pytest.UsageError("these tests are for the compiled build, and this one is interpreted")

# A shell starts background jobs with SIGINT ignored and children inherit that: Ctrl-C would do nothing.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile(  # the same examples each time: what is searched for at random is `make deep`'s
    "fast",
    max_examples=50,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "deep",
    settings.get_profile("fast"),
    max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "20000")),
    derandomize=False,
    database=None,  # the seed says it all
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
)
settings.register_profile(  # for mutants: that it fails is all one wants to know
    "hunt",
    settings.get_profile("fast"),
    max_examples=200,
    phases=[Phase.generate],
    report_multiple_bugs=False,
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))
