"""Faults in what the camera sends: another kind of picture, damaged ones, timestamps that lie, no new ones."""

import math
import random
from contextlib import contextmanager

import numpy as np
import pytest
from colour_bundle import colour_bundle
from media import access_units
from numbered import COUNT, FPS, HELD, SIZE, NumberedPlant, numbered_clip, numbered_units, picture, published, shown
from packet_faults import leave, shift_reports, shift_time
from row import fault
from rtsp_proxy import RtspProxy
from rtsp_server import RtspServer, missing

GROUP = "Stream and picture"
GOP = 15
KEYS = "frozen_after_s = 1.5\n"
HOUR = 3600

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


def larger(index):
    """Twice the size: what a region shows there is another place."""
    return picture(index).repeat(2, axis=0).repeat(2, axis=1)


def still(index):
    """A good part that stands still, under a sensor's noise."""
    noise = np.random.default_rng(index).integers(-5, 6, (SIZE[1], SIZE[0], 3), np.int16)
    return np.clip(picture(0) + noise, 0, 255).astype(np.uint8)


def spoilt(units, how):
    """The same stream with damage in one picture of each group of pictures, the first after the key that is another."""
    units = [dict(unit) for unit in units]
    for unit in units[HELD::GOP]:
        unit["data"] = how(unit["data"])
    return units


def halved(data):
    return data[: len(data) // 2]


def flipped(data):
    """Eight bits are the others, behind the headers."""
    dice = random.Random(len(data))
    bits = bytearray(data)
    for _ in range(8):
        bits[dice.randrange(len(data) // 2, len(data))] ^= 1 << dice.randrange(8)
    return bytes(bits)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stream")
    colour_bundle(folder / "bundle")
    return folder


@pytest.fixture(scope="module")
def plant(folder):
    """A daemon before a camera that can change what it sends while it sends it."""
    frozen = still(0)
    clip = numbered_clip(folder / "clip.mp4")
    units = access_units(clip)
    scenes = {
        "larger": numbered_units(folder / "larger.mp4", larger, size=(2 * SIZE[0], 2 * SIZE[1])),
        "422": numbered_units(folder / "422.mp4", pix_fmt="yuv422p"),
        "444": numbered_units(folder / "444.mp4", pix_fmt="yuv444p"),
        "full-range": numbered_units(folder / "full.mp4", full_range=True),
        "truncated": spoilt(units, halved),
        "flipped": spoilt(units, flipped),
        "missing": spoilt(units, lambda data: b""),
        "frozen": numbered_units(folder / "frozen.mp4", lambda _: frozen),
        "still": numbered_units(folder / "still.mp4", still),
    }
    with (
        RtspServer(clip, scenes=scenes) as server,
        RtspProxy(server.port) as proxy,
        NumberedPlant(folder, server, proxy, KEYS) as plant,
    ):
        yield plant


@pytest.fixture
def line(plant):
    """The daemon of all these rows, well again from the last one's fault."""
    return plant.settled()


@contextmanager
def another_camera(line, clip):
    """In the place of the line's camera one that sends that clip; afterwards the line's own again."""
    with RtspServer(clip) as other:
        line.proxy.upstream = other.port
        line.proxy.cut()
        try:
            yield other
        finally:
            line.proxy.upstream = line.server.port
            line.proxy.cut()


def judged_between(line, since, until=math.inf):
    """Of what was received, the judgements published from half a second after `since` (Unix seconds) on."""
    return [m for m in line.judged if since + 0.5 < published(m) < until]


# -- another kind of picture -------------------------------------------------------------------------------


@fault(
    GROUP,
    "Another resolution",
    injected="the camera restarts with twice the width and height; or changes it within the stream",
    does="`resized`, camera `fault: resized`: the regions would lie elsewhere; goes on when the old size is back",
    protection="the first size, or `size`, holds for the life of the daemon",
    detect_s=8,
    recover_s=8,
)
@pytest.mark.parametrize("how", ["restarted", "in the stream"])
def test_another_resolution_is_not_judged(line, folder, watch, how):
    """Every region still lies inside the larger picture; what it shows there is not the part."""
    watch.injected()
    if how == "restarted":
        with another_camera(line, folder / "larger.mp4") as camera:
            line.fault("resized")
            watch.detected()
            line.subscriber.for_seconds(0.5)
            (changed,) = camera.began
    else:
        changed = line.server.show("larger")
        line.fault("resized")
        watch.detected()
        line.subscriber.for_seconds(0.5)
        line.server.show()
    watch.over()
    assert judged_between(line, changed) == []
    line.judged_again()
    watch.recovered()
    line.check()


@fault(
    GROUP,
    "Another codec",
    injected="the camera restarts with HEVC, then with MJPEG, then with H.264 again",
    does="goes on by itself, every judgement right",
    protection="decoder and damage detection are made anew for each connection",
    recover_s=30,
)
def test_another_codec_is_judged_like_the_one_before(line, folder, watch):
    """Three restarts, three decoders; `recover_s` is for all of them."""
    hevc = numbered_clip(folder / "hevc.mp4", codec="libx265")
    # RTP carries no Huffman tables (RFC 2435).
    tables = {"huffman": "default"}
    mjpeg = numbered_clip(folder / "mjpeg.avi", codec="mjpeg", pix_fmt="yuvj420p", options=tables)
    watch.injected()
    cameras = []
    for clip in (hevc, mjpeg):
        with another_camera(line, clip) as camera:
            cameras.append(camera)
            line.reconnected()
            line.subscriber.for_seconds(0.5)
    line.reconnected()
    watch.recovered()
    line.check(servers=cameras)


@pytest.mark.soak
@fault(
    GROUP,
    "Another frame rate",
    injected="the camera restarts with 10 instead of 20 pictures a second, then with 20 again",
    does="goes on by itself, every judgement right",
    protection="age goes by the stream's own time, not by a rate that was seen once",
    recover_s=20,
)
def test_another_frame_rate_is_judged_like_the_one_before(line, folder, watch):
    """Neither the pause between two pictures nor the doubled pace afterwards is taken for a backlog."""
    slow = numbered_clip(folder / "slow.mp4", lambda index: picture(2 * index), fps=FPS // 2, count=COUNT // 2)
    watch.injected()
    with another_camera(line, slow) as camera:
        line.reconnected()
        line.subscriber.for_seconds(1)
    line.reconnected()
    watch.recovered()
    line.check(servers=[camera])


@pytest.mark.soak
@fault(
    GROUP,
    "Another pixel format",
    injected="within the stream: 4:2:0, 4:2:2, 4:4:4 (limited range), 4:2:0 full range, 4:2:0 limited range again",
    does="goes on by itself, every judgement right",
    protection="layout, matrix and range are read from each picture",
    recover_s=20,
)
def test_other_pixel_formats_are_judged_like_the_one_before(line, watch):
    """`recover_s` is for all four changes."""
    watch.injected()
    for scene in ("422", "444", "full-range", "clip"):
        changed = line.server.show(scene)
        line.judged_again()
        line.subscriber.until(lambda m, changed=changed: "verdict" in m and published(m) > changed + 0.5)
    watch.recovered()
    line.check()


# -- damage ------------------------------------------------------------------------------------------------


def spoilt_and_whole_again(scene, line, watch):
    """Two groups of pictures and more with damage in each: from there to the next key picture none is judged."""
    watch.injected()
    began = line.server.show(scene)
    line.refused("corrupt")
    watch.detected()
    line.subscriber.until(lambda m: "verdict" in m and published(m) > began + 2.5 * GOP / FPS)
    over = line.server.show()
    watch.over()
    line.judged_again()
    watch.recovered()
    during = [m for m in line.check() if began + 0.5 < published(m) < over and m["frame"]["pts"] is not None]
    behind = {m["reason"] for m in during if shown(m) % GOP >= HELD}
    assert "corrupt" in behind
    assert None not in behind


@fault(
    GROUP,
    "Truncated H.264",
    injected="one picture in each group is sent by half",
    does="it and those after it until the next key picture are `corrupt`; the whole ones between are judged",
    protection="the decoder's flags, and damage that lasts until a clean key picture",
    detect_s=3,
    recover_s=3,
    settings="key pictures every 0.75 s",
)
def test_a_truncated_picture_spoils_those_after_it(line, watch):
    spoilt_and_whole_again("truncated", line, watch)


@fault(
    GROUP,
    "Bit-flipped H.264",
    injected="eight bits of one picture in each group are the others",
    does="it and those after it until the next key picture are `corrupt`. Bits that make another valid picture are "
    "seen by nobody: checksums are the network's business",
    protection="strict error detection in the decoder, and damage that lasts until a clean key picture",
    detect_s=3,
    recover_s=3,
    settings="key pictures every 0.75 s",
)
def test_a_picture_with_flipped_bits_spoils_those_after_it(line, watch):
    spoilt_and_whole_again("flipped", line, watch)


@fault(
    GROUP,
    "Missing reference picture",
    injected="the camera leaves out one picture in each group; nothing is lost on the way",
    does="those after it until the next key picture are `corrupt`",
    protection="the numbers in the H.264 headers (`frame_num`), also of a stream that allows itself gaps: whether "
    "one was thinned on purpose cannot be told; the decoder alone repeats an older picture instead",
    detect_s=3,
    recover_s=3,
    settings="key pictures every 0.75 s",
)
def test_a_picture_that_was_never_sent_spoils_those_after_it(line, watch):
    spoilt_and_whole_again("missing", line, watch)


def standing_still():
    """For `shift_time`: the first timestamp, again and again."""
    first = []

    def change(time):
        first.append(time)
        return first[0]

    return change


# -- time --------------------------------------------------------------------------------------------------


@fault(
    GROUP,
    "Stream without timestamps",
    injected="every RTP packet has the same timestamp",
    does="`stale`, camera `fault: stale`, a new connection every 10 s: nobody can tell how old these pictures are",
    protection="the backlog detector",
    detect_s=4,
    recover_s=5,
)
def test_pictures_without_a_time_are_not_judged(line, watch):
    line.proxy.meddle = shift_time(standing_still())
    watch.injected()
    line.fault("stale")
    watch.detected()
    begun = len(line.judged)
    line.subscriber.for_seconds(1)
    assert len(line.judged) == begun
    line.proxy.meddle = leave
    watch.over()
    line.judged_again()
    watch.recovered()
    line.check(honest_pts=False)


@fault(
    GROUP,
    "Timestamps jump",
    injected="an hour forward, then back, then a second forward and back",
    does="`stale` for about a second after each, until the new clock is known; no reconnect",
    protection="the backlog detector starts anew where the stream's clock does",
    detect_s=2,
    recover_s=20,
)
def test_timestamps_that_jump_cost_a_second_and_nothing_old_is_judged(line, watch):
    """Every picture is as fresh as ever; only nobody can know at first. `recover_s` is for all four jumps."""
    connections = len(line.server.began)
    watch.injected()
    for number, jump_s in enumerate((HOUR, 0, 1, 0)):
        line.proxy.meddle = shift_time(lambda time, jump_s=jump_s: time + jump_s * 90_000)
        stale = line.refused("stale")
        if not number:
            watch.detected()
        line.judged_again(stale)
    watch.recovered()
    assert len(line.server.began) == connections, "only a new connection helped"
    line.check(honest_pts=False)


@fault(
    GROUP,
    "Sender reports wrong",
    injected="the camera's clock is an hour ahead in its RTCP sender reports, then right again",
    does="goes on; `captured_at` is the arrival (`clock: arrival`), a warning names the difference; then `rtcp` again",
    protection="a camera's clock is believed within 10 minutes of ours",
    detect_s=3,
    recover_s=3,
)
def test_a_camera_clock_that_is_an_hour_off_is_not_believed(line, watch):
    line.proxy.meddle = shift_reports(HOUR)
    watch.injected()
    line.subscriber.until(lambda m: "verdict" in m and m["frame"]["clock"] == "arrival")
    watch.detected()
    line.judged_again()
    line.proxy.meddle = leave
    watch.over()
    line.subscriber.until(lambda m: m.get("verdict") == "pass" and m["frame"]["clock"] == "rtcp")
    watch.recovered()
    check_clocks(line.check())
    line.daemon.wait_for_log("camera_clock_refused", camera="line", timeout=5)


@fault(
    GROUP,
    "Sender reports missing",
    injected="the camera sends no RTCP sender reports",
    does="every picture is judged; `captured_at` is the arrival (`clock: arrival`)",
    protection="the arrival where the camera tells no time",
    recover_s=5,
)
def test_without_sender_reports_the_arrival_counts(line, watch):
    line.proxy.meddle = shift_reports(None)
    line.proxy.cut()
    watch.injected()
    line.reconnected()
    watch.recovered()
    begun = len(line.judged)
    line.subscriber.for_seconds(1)
    assert {m["frame"]["clock"] for m in line.judged[begun:]} == {"arrival"}
    line.proxy.meddle = leave
    check_clocks(line.check())


# -- nothing new -------------------------------------------------------------------------------------------


@fault(
    GROUP,
    "Frozen content",
    injected="the camera goes on coding one and the same picture of a good part",
    does="`frozen` from `frozen_after_s` on, camera `fault: frozen`; goes on with the first new picture",
    protection="byte by byte comparison with the last 16 pictures: an encoder shows one picture in several ways",
    detect_s=3.5,
    recover_s=2,
    settings="frozen_after_s = 1.5",
)
def test_a_camera_that_repeats_its_picture_is_frozen(line, watch):
    """It has noise, edges and good colours; only there is nothing new in it."""
    began = line.server.show("frozen")
    watch.injected()
    line.fault("frozen")
    watch.detected()
    line.subscriber.for_seconds(1)
    until = line.server.show()
    watch.over()
    line.judged_again()
    watch.recovered()
    assert [m for m in line.judged if began + 3.5 < published(m) < until] == []
    line.check(oldest_s=math.inf, honest_pts=False)  # the picture's number stands still, too


@fault(
    GROUP,
    "Static scene",
    injected="no fault: the same part lies still, under a sensor's noise of 5 levels, for twice `frozen_after_s`",
    does="every picture is judged, none is `frozen`",
    protection="none is needed: noise makes every picture another",
    recover_s=8,
    settings="frozen_after_s = 1.5",
)
def test_a_scene_that_stands_still_is_not_frozen(line, watch):
    """The same part as in the row above, with new noise in each picture."""
    began = line.server.show("still")
    watch.injected()
    line.subscriber.until(lambda m: m.get("verdict") == "pass" and published(m) > began + 3.5)
    watch.recovered()
    line.server.show()
    verdicts = line.check(oldest_s=math.inf, honest_pts=False)
    assert [m for m in verdicts if m["reason"] == "frozen"] == []


def check_clocks(verdicts):
    """`captured_at` is never far from the truth, whoever told it."""
    assert verdicts
    for message in verdicts:
        assert 0 <= published(message) - published({"published_at": message["captured_at"]}) < 2, message
