"""Damaged video: it is called corrupt, wherever the stream tells; nothing crashes, hangs or fills the memory."""

import random
from collections import Counter

import pytest
from hostile.cage import caged
from hostile.clips import OPTIONS, SPS, STRUCTURAL, annex_b, decode, fates, key, mutate_units, prepare, resized

from inspectd.capture.h264 import Continuity, is_whole

MAX_GROWN = 400 << 20
"""Resident memory that any number of broken clips may cost."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="module")
def streams(folder):
    """The whole clips, each with its truth, by name."""
    return {stream.name: stream for stream in prepare(folder).args[0]}


def survived(results):
    """The results, once it is sure that no case ended in another way than by itself."""
    assert [result for result in results if result["end"] != "done"] == []
    assert max(result["grown"] for result in results) < MAX_GROWN
    return results


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("way", STRUCTURAL)
def test_no_picture_that_may_be_wrong_is_admitted_when_something_is_lost_doubled_or_misplaced(streams, name, way):
    """Whole pictures, slices and parameter sets, lost, twice, exchanged, cut or from elsewhere."""
    stream = streams[name]
    what, units = mutate_units(stream.units, random.Random(way), way)
    frames, _ = decode(units)
    wrong = [
        (what, frame.pts)
        for frame, fate in zip(frames, fates(frames), strict=True)
        if fate == "admitted" and key(frame) != stream.by_pts.get(frame.pts)
    ]
    assert wrong == []


@pytest.mark.usefixtures("streams")
def test_broken_clips_neither_crash_nor_hang_nor_fill_the_memory(folder):
    """In a child process with little memory and time. `make test-soak` takes more of them."""
    survived(caged("clips", range(18), folder))


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_thousand_broken_clips(tmp_path, capsys):
    """And what of them nobody can see: bits that became another valid picture."""
    results = survived(caged("clips", range(1000), tmp_path))
    structural = [result for result in results if result["wrong"] and result["way"].startswith(STRUCTURAL)]
    assert structural == []
    unseen = Counter(result["way"].split(" at ")[0].split(",")[0] for result in results if result["wrong"])
    with capsys.disabled():
        admitted, wrong = sum(result["admitted"] for result in results), sum(len(result["wrong"]) for result in results)
        print(
            f"\n1000 clips, {admitted} frames admitted, {wrong} of them wrong, in {unseen.total()} clips:", dict(unseen)
        )


@pytest.mark.parametrize("other", [0, 12, 16])
def test_slices_of_two_pictures_in_one_are_damage(streams, other):
    """A key frame's slice among those of another would pass for a new beginning."""
    units = [list(nals) for _, nals in streams["slices"].units]
    units[14].insert(0, units[other][-1])
    follow = Continuity()
    assert [follow.follow(annex_b(nals))[0] for nals in units[:15]] == [False] * 14 + [True]


def test_data_behind_the_last_block_of_a_slice_are_damage(streams):
    """It was decoded to its end too early, so what was decoded is not what was meant. FFmpeg alone lets it pass."""
    stream = streams["cavlc"]
    units = [(pts, list(nals)) for pts, nals in stream.units]
    units[14][1][-1] += b"\x5a" * 8
    frames, _ = decode(units)
    assert [index for index, fate in enumerate(fates(frames)) if fate == "corrupt"] == list(range(14, 24))


@pytest.mark.parametrize(("macroblocks", "decodes"), [(20, True), (512, False)])
def test_a_header_that_asks_for_gigabytes_is_refused(streams, macroblocks, decodes):
    """8192 x 8192 pixels with sixteen references would take 1.7 GB."""
    stream = streams["cavlc"]
    units = [
        (pts, [resized(nal, macroblocks) if (nal[0] & 31) == SPS else nal for nal in nals])
        for pts, nals in stream.units
    ]
    frames, _ = decode(stream.units[:2] + units[:12])
    assert {frame.width for frame in frames} == ({192, 16 * macroblocks} if decodes else {192})
    assert "admitted" not in fates(frames)[2:]


@pytest.mark.parametrize("length_size", [0, 4])
def test_a_block_of_zeros_in_a_picture_is_damage(length_size):
    """As a disk leaves it after a power failure. Zeros at the end may be padding, and a cut picture is cut."""
    nal = b"\x41" + bytes(range(1, 200))

    def unit(*nals):
        start = [len(nal).to_bytes(4, "big") if length_size else b"\0\0\0\1" for nal in nals]
        return b"".join(head + nal for head, nal in zip(start, nals, strict=True))

    assert is_whole(unit(nal, nal), length_size)
    assert is_whole(unit(nal, nal + bytes(3)), length_size)
    assert is_whole(unit(nal[:50] + b"\0\0\3\0\0\3\1" + nal[50:], nal), length_size)
    assert not is_whole(unit(nal, nal[:50] + bytes(16) + nal[66:]), length_size)


@pytest.mark.parametrize("data", [b"\0\0\0\5abcd", b"\0\0\0\2abcd", b"\xff\xff\xff\xffabcd", b"\0\0\0\4abcd\0"])
def test_nal_units_that_do_not_fill_the_picture_are_damage(data):
    assert is_whole(b"\0\0\0\4abcd", 4)
    assert not is_whole(data, 4)
