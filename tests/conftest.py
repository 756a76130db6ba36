"""What holds for every test."""

import logging

import properties  # noqa: F401  what every property test is tried on
import pytest
import structlog


@pytest.fixture(autouse=True)
def logging_as_it_was():
    """A test that runs a command in this process configures logging, for the process: not for the next test."""
    configured, root = structlog.get_config(), logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.configure(**configured)
    root.handlers[:] = handlers
    root.setLevel(level)
