"""How many examples a property is tried on, and which.

In `make test` they are the same for the same test, so that what was green stays green; `make test-properties` tries
EXAMPLES times as many, other ones each time, and is where a rare one is to be met.
"""

from __future__ import annotations

import os
from typing import Any

from hypothesis import settings

TIMES = int(os.environ.get("INSPECTD_EXAMPLES", "0"))


def examples(count: int, **others: Any) -> settings:
    """`count` examples in `make test`; no deadline, because a machine that stops for a moment breaks no property."""
    return settings(
        max_examples=count * (TIMES or 1),
        derandomize=not TIMES,
        database=None,
        print_blob=bool(TIMES),
        deadline=None,
        **others,
    )


settings.register_profile("inspectd", examples(100))
settings.load_profile("inspectd")
