"""The page that people read is the table that the tests are."""

import json
from pathlib import Path

from document import GROUPS, MEASURED, document, rows

PAGE = Path(__file__).parents[2] / "docs/faults.md"


def test_the_page_is_made_of_these_rows():
    """Written anew it is the same; otherwise `make faults` was forgotten."""
    assert PAGE.read_text() == document(json.loads(MEASURED.read_text()))


def test_every_row_says_all_it_has_to():
    """No empty cell, no row without a time, every group there."""
    found = rows()
    assert {row.group for _, row in found} == set(GROUPS)
    for test, row in found:
        assert all((row.fault, row.injected, row.does, row.protection)), test
        assert row.detect_s is not None or row.recover_s is not None, test
