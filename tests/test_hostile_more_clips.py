"""Damaged HEVC and Motion JPEG: no crash, no hang, no flood; what is missing, twice or elsewhere is told."""

import random
from collections import Counter

import pytest
from hostile.cage import caged
from hostile.clips import decode, fates, key
from hostile.more_clips import IS_KEY, LOST, codec_of, mutate_hevc, prepare

from inspectd.capture.h264 import is_whole

MAX_GROWN = 400 << 20
"""Resident memory that any number of broken clips may cost."""
HEVC = ("hevc", "hevc-open")
B_FRAMES = "hevc-b-frames"
"""Of several lost pictures the decoder does not always say so, where B pictures lie behind them (SECURITY.md)."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("more-clips")


@pytest.fixture(scope="module")
def streams(folder):
    """The whole clips, each with its truth, by name."""
    return {stream.name: stream for stream in prepare(folder).args[0]}


def survived(results):
    assert [result for result in results if result["end"] != "done"] == []
    assert max(result["grown"] for result in results) < MAX_GROWN
    return results


def never_taken(units, stream):
    """When the pictures are shown that are admitted, and that the camera did not take."""
    frames, _ = decode(units, "hevc", IS_KEY["hevc"])
    told = zip(frames, fates(frames), strict=True)
    return [frame.pts for frame, fate in told if fate == "admitted" and key(frame) not in stream.all]


@pytest.mark.parametrize("name", HEVC)
@pytest.mark.parametrize("way", LOST)
def test_no_picture_that_the_camera_did_not_take_is_admitted_when_hevc_pictures_are_lost_doubled_or_misplaced(
    streams, name, way
):
    """Also those that were predicted from the lost ones, and those that the decoder makes up in their place."""
    for seed in range(2):
        what, units = mutate_hevc(streams[name].units, random.Random(f"{way} {seed}"), way)
        assert never_taken(units, streams[name]) == [], what


@pytest.mark.parametrize(("first", "count"), [(17, 8), (4, 9), (22, 7)])
def test_what_the_decoder_makes_of_a_missing_reference_is_refused_with_b_pictures_too(streams, first, count):
    """It says so only when it is asked to give up at errors."""
    units = list(streams[B_FRAMES].units)
    del units[first : first + count]
    assert never_taken(units, streams[B_FRAMES]) == []


@pytest.mark.parametrize("name", HEVC)
def test_a_block_of_zeros_in_an_hevc_picture_is_damage(streams, name):
    """As a disk leaves it after a power failure; the decoder alone takes it for a picture."""
    units = [(pts, list(nals)) for pts, nals in streams[name].units]
    nal = max(units[1][1], key=len)
    units[1] = (units[1][0], [nal[: len(nal) // 2] + bytes(16) + nal[len(nal) // 2 + 16 :]])
    frames, _ = decode(units, "hevc", IS_KEY["hevc"])
    shown = {frame.pts: fate for frame, fate in zip(frames, fates(frames), strict=True)}
    assert shown[units[1][0]] == "corrupt"
    assert "admitted" in shown.values(), "clean again with a key picture"
    assert is_whole(nal, 0)


@pytest.mark.usefixtures("streams")
def test_broken_hevc_and_jpeg_clips_neither_crash_nor_hang_nor_fill_the_memory(folder):
    """In a child process with little memory and time. `make test-soak` takes more of them."""
    survived(caged("more_clips", range(9), folder))


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_thousand_broken_hevc_and_jpeg_clips(tmp_path, capsys):
    """And what of them nobody can see: bits that became another valid picture."""
    results = survived(caged("more_clips", range(1000), tmp_path))
    sure = [result for result in results if result["stream"] != B_FRAMES and result["way"].startswith(LOST)]
    lost = [result for result in sure if result["wrong"]]
    assert lost == []
    clips = Counter(codec_of(result["stream"]) for result in results)
    unseen = Counter(codec_of(result["stream"]) for result in results if result["wrong"])
    with capsys.disabled():
        print(f"\nbroken clips: {dict(clips)}; with pictures admitted that nobody took: {dict(unseen)}")
