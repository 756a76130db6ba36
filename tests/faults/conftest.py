"""Every test of this folder is a row of the fault table (docs/faults.md)."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))  # the kit of the tests next door

from row import Watch, keep


@pytest.fixture
def watch(request):
    """The row's stop-watch; a test that did not measure what its row promises has failed."""
    row = getattr(request.function, "fault_row", None)
    assert row is not None, f"{request.node.name} is no row: decorate it with @fault"
    watch = Watch(row)
    yield watch
    if not getattr(request.node, "failed_call", False):
        watch.complete()
        keep(f"{request.module.__name__}::{request.function.__name__}", request.node.name, watch)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Let the fixture know whether the test itself failed: then its stamps say nothing."""
    report = yield
    if call.when == "call" and not report.passed:
        item.failed_call = True
    return report
