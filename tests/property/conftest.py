"""How long Hypothesis looks: long enough to find what was planted, and the same in CI each time."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "bounded",
    max_examples=200,
    deadline=None,  # the first example of a run pays for imports
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],  # as above
)
settings.load_profile("bounded")
