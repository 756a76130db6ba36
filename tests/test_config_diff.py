"""What a re-read configuration changes: nothing that differs is overlooked, and no secret is shown."""

import pytest

from inspectd.config import load_settings
from inspectd.config.diff import changes

CONFIG = """
[model]
bundle = "BUNDLE"
[[cameras]]
name = "left"
source = "rtsp://user:PASSWORD@10.0.0.1/x"
[[cameras.rois]]
name = "lid"
box = [0, 0, 16, 16]
[[cameras]]
name = "right"
source = "usb:0"
[[cameras.rois]]
name = "lid"
box = [0, 0, 16, 16]
[recipes.None]
rois = [
    { camera = "left", name = "lid", box = LEFT },
    { camera = "right", name = "lid", box = [0, 0, 16, 16] },
]
"""
LONG = "bundles/of-a-customer/with-a-product-of-a-long-name/" + "station-3/" * 6


@pytest.fixture
def load(tmp_path):
    def _load(bundle="bundle", password="one", left="[0, 0, 16, 16]", head=""):
        text = CONFIG.replace("BUNDLE", bundle).replace("PASSWORD", password).replace("LEFT", left)
        (tmp_path / "line.toml").write_text(head + text)
        return load_settings(tmp_path / "line.toml", {})

    return _load


def test_the_same_file_changes_nothing(load):
    assert changes(load(), load()) == []


def test_a_long_value_that_differs_at_its_end_is_shown_there(load):
    """A path of 300 characters, of which the last one is another."""
    (found,) = changes(load(LONG + "v1"), load(LONG + "v2"))
    assert (found.key, found.live) == ("model.bundle", True)
    assert found.old.endswith("/station-3/v1")
    assert found.new.endswith("/station-3/v2")
    assert len(found.new) < 80


def test_a_long_value_is_cut(load):
    """Before and behind what differs."""
    (found,) = changes(load(LONG + "v1" + LONG), load(LONG + "v2" + LONG))
    assert found.old[0] == found.old[-1] == "…"
    assert "/v1bundles/" in found.old
    assert len(found.old) < 100


def test_regions_of_one_name_at_two_cameras_are_two(load):
    """The first of a recipe's two."""
    assert [str(change) for change in changes(load(), load(left="[1, 0, 16, 16]"))] == [
        "recipes.None.rois[left/lid].box: [0, 0, 16, 16] -> [1, 0, 16, 16]"
    ]


def test_a_new_password_is_a_change_that_does_not_show_it(load):
    """It takes a new connection, and so a restart."""
    (found,) = changes(load(password="secret-1"), load(password="secret-2"))
    assert str(found) == "cameras[left].source: rtsp://***@10.0.0.1/x -> the same with other credentials"
    assert not found.live


def test_a_name_is_not_taken_for_what_is_absent(load):
    """A recipe may be called so."""
    assert [str(change) for change in changes(load(), load(head='recipe = "None"\n'))]
