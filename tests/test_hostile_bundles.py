"""Damaged and malicious bundles: refused in one line, whatever was done to them."""

import json
import os
from collections import Counter

import pytest
from colour_bundle import colour_bundle
from hostile.cage import caged

from inspectd.errors import BundleError
from inspectd.model import bundle as bundle_module
from inspectd.model.bundle import MANIFEST, load_bundle

MAX_GROWN = 400 << 20
HONEST = ("bytes", "manifest", "path", "size", "file kind")
"""What is done without making the hashes fit."""


@pytest.fixture
def bundle(tmp_path):
    colour_bundle(tmp_path / "bundle")
    return tmp_path / "bundle"


def refusal(path):
    with pytest.raises(BundleError) as caught:
        load_bundle(path)
    assert str(caught.value).isprintable()
    return str(caught.value)


def survived(results):
    """The results, once it is sure that none crashed, hung, or served another model than was made."""
    assert [result for result in results if result["end"] != "done"] == []
    assert max(result["grown"] for result in results) < MAX_GROWN
    served = [result for result in results if result["outcome"] != "refused" and result["family"] in HONEST]
    others = [result for result in served if not result["same"] and result["changed"] != MANIFEST]
    assert others == [], "the manifest is known by its hash; all else is bound by it"
    return results


def test_broken_bundles_neither_crash_nor_hang_nor_serve_another_model(tmp_path):
    """In a child process with little memory and time. `make test-soak` takes more of them."""
    survived(caged("bundles", range(10), tmp_path))


@pytest.mark.soak
@pytest.mark.timeout(3000)
def test_a_thousand_broken_bundles(tmp_path, capsys):
    results = survived(caged("bundles", range(1000), tmp_path))
    with capsys.disabled():
        print("\n1000 bundles:", dict(Counter(f"{result['family']}: {result['outcome']}" for result in results)))


def test_a_file_name_that_is_too_long_is_refused(bundle):
    data = json.loads((bundle / "bundle.json").read_text())
    data["files"]["a" * 300] = "0" * 64
    (bundle / "bundle.json").write_text(json.dumps(data))
    assert "File name too long" in refusal(bundle)


def test_a_key_with_a_line_break_makes_no_second_line(bundle):
    data = json.loads((bundle / "bundle.json").read_text())
    (bundle / "bundle.json").write_text(json.dumps({**data, "a\nERROR all is well\x1b[2J": 1}))
    assert "Extra inputs" in refusal(bundle)


@pytest.mark.parametrize("name", ["bundle.json", "openvino/model.bin"])
def test_a_file_that_claims_to_be_huge_is_refused_before_it_is_read(bundle, name):
    """A terabyte that takes no place on the disk."""
    os.truncate(bundle / name, 1 << 40)
    assert "more than" in refusal(bundle) or "longer than" in refusal(bundle)


def test_files_that_are_huge_together_are_refused(bundle, monkeypatch):
    monkeypatch.setattr(bundle_module, "MAX_BYTES", sum(file.stat().st_size for file in bundle.glob("openvino/*")) - 1)
    assert "more than" in refusal(bundle)
    monkeypatch.setattr(bundle_module, "MAX_BYTES", bundle_module.MAX_BYTES + 1)
    assert load_bundle(bundle)
