"""Faults of the camera and of the network before it: it freezes, dies, vanishes, refuses, or half of it arrives."""

from contextlib import contextmanager

import pytest
from colour_bundle import colour_bundle
from line import Line, running_daemon
from numbered import ROIS, NumberedPlant, numbered_clip, rich, untrue
from packet_faults import leave, lose, reorder
from row import fault
from rtsp_proxy import RtspProxy
from rtsp_server import RtspServer, missing
from test_daemon import counters, write_config

from inspectd.capture import camera
from inspectd.capture.source import make_source

GROUP = "Camera and network"
KEYS = "stall_timeout_s = 1.5\nconnect_timeout_s = 1.0\n"
SETTINGS = "stall_timeout_s = 1.5, connect_timeout_s = 1"

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("camera")
    colour_bundle(folder / "bundle")
    return folder


@contextmanager
def plant(folder, transport, **clip):
    """A daemon at work before a camera of its own."""
    keys = f'{KEYS}transport = "{transport}"'
    with (
        RtspServer(numbered_clip(folder / f"{transport}.mp4", **clip)) as server,
        RtspProxy(server.port) as proxy,
        NumberedPlant(folder, server, proxy, keys, transport) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def tcp_plant(folder):
    with plant(folder, "tcp") as running:
        yield running


@pytest.fixture(scope="module")
def udp_plant(folder):
    """With HEVC, whose decoder says nothing where a part of a picture is missing."""
    with plant(folder, "udp", scene=rich, codec="libx265", options={"crf": "12"}) as running:
        yield running


@pytest.fixture
def line(tcp_plant):
    """The daemon of all these rows, well again from the last one's fault."""
    return tcp_plant.settled()


@pytest.fixture
def udp_line(udp_plant):
    return udp_plant.settled()


def at_length(short_s, full_s):
    """The same fault for so long, and in `make test-soak` for longer."""
    return pytest.mark.parametrize("away_s", [short_s, pytest.param(full_s, marks=pytest.mark.soak)])


@fault(
    GROUP,
    "Camera frozen",
    injected="SIGSTOP to the RTSP server, SIGCONT later",
    does="camera `fault: stall`; retries; what had queued up meanwhile is `stale`, never judged",
    protection="the camera's watch over the time since the last frame; the backlog detector",
    detect_s=2.5,
    recover_s=5,
    settings=SETTINGS,
)
@at_length(1.5, 30)
def test_a_frozen_camera_is_a_stall_and_its_backlog_is_not_judged(line, watch, away_s):
    """The server's process stands still; back at work it first sends all that it missed."""
    line.server.freeze()
    watch.injected()
    line.fault("stall")
    watch.detected()
    line.subscriber.for_seconds(away_s)
    line.server.thaw()
    watch.over()
    line.judged_again()
    watch.recovered()
    line.check()


@fault(
    GROUP,
    "Camera hiccup",
    injected="SIGSTOP to the RTSP server for 1.2 s, shorter than `stall_timeout_s`; then it sends all that it missed",
    does="what is older than `max_age_ms` is `stale`; no picture is judged later than that after it was taken",
    protection="the backlog detector; what a picture had waited before it arrived counts as age",
    detect_s=3,
    recover_s=3,
    settings=SETTINGS,
)
def test_pictures_that_a_camera_kept_back_are_not_judged(line, watch):
    """They come over the same connection, whole and in order, and look as if they had just been taken."""
    line.server.freeze()
    watch.injected()
    line.subscriber.for_seconds(1.2)
    line.server.thaw()
    watch.over()
    stale = line.refused("stale")
    watch.detected()
    line.judged_again(stale)
    watch.recovered()
    line.check(oldest_s=0.75)


@fault(
    GROUP,
    "Camera dead",
    injected="SIGKILL to the RTSP server, started again later",
    does="camera `fault: ended`, then `refused`; retries at most a second apart; goes on when it is back",
    protection="the camera's retries",
    detect_s=1.5,
    recover_s=5,
    settings=SETTINGS,
)
@at_length(1, 30)
def test_a_dead_camera_is_a_fault_at_once_and_goes_on_when_it_is_back(line, watch, away_s):
    """Its connection ends, and nobody listens where it was."""
    line.server.kill()
    watch.injected()
    line.fault("ended", "refused")
    watch.detected()
    line.subscriber.for_seconds(away_s)
    line.server.start()
    watch.over()
    line.judged_again()
    watch.recovered()
    line.check()


@fault(
    GROUP,
    "Cable pulled (half-open TCP)",
    injected="a proxy passes nothing on and closes nothing; whoever connects anew gets no answer, not even a refusal",
    does="camera `fault: stall`, then `timeout` at each attempt; goes on when packets pass again",
    protection="the camera's watch over the time since the last frame; `connect_timeout_s`",
    detect_s=2.5,
    recover_s=6,
    settings=SETTINGS,
)
@at_length(0, 30)
def test_a_half_open_connection_is_a_stall_and_a_new_one_is_made(line, watch, away_s):
    """Our side of the connection is as well as ever; only nothing comes through it."""
    line.proxy.pull()
    watch.injected()
    line.fault("stall")
    watch.detected()
    line.fault("timeout")
    line.subscriber.for_seconds(away_s)
    line.proxy.restore()
    watch.over()
    line.judged_again()
    watch.recovered()
    line.check()


@pytest.mark.soak
@fault(
    GROUP,
    "Camera accepts and never answers",
    injected="connections end; new ones are taken by a server that says nothing",
    does="camera `fault: ended`, then `timeout`; each attempt ends with `connect_timeout_s`",
    protection="one time limit over all steps of connecting",
    detect_s=4,
    recover_s=6,
    settings=SETTINGS,
)
def test_a_camera_that_never_answers_is_a_timeout_and_tried_again(line, watch):
    """No attempt hangs."""
    before = reconnects(line, "timeout")
    line.proxy.swallow()
    line.proxy.cut()
    watch.injected()
    line.fault("timeout")
    watch.detected()
    line.subscriber.until(lambda _: reconnects(line, "timeout") > before)
    line.proxy.restore()
    watch.over()
    line.judged_again()
    watch.recovered()
    line.check()


@pytest.mark.soak
@fault(
    GROUP,
    "20 connects in a row refused",
    injected="nobody listens at the camera's port until 20 attempts (4 in the quick suite) have failed",
    does="camera `fault: refused`; never gives up, never waits longer than a second between attempts",
    protection="the limit of the backoff",
    detect_s=1.5,
    recover_s=5,
    settings=SETTINGS,
)
@pytest.mark.parametrize("attempts", [4, pytest.param(20, marks=pytest.mark.soak)])
def test_many_refused_connects_in_a_row_do_not_delay_the_return(line, watch, attempts):
    """The last attempt before the camera's return is no longer ago than the second."""
    before = reconnects(line, "refused")
    line.proxy.refuse()
    watch.injected()
    line.fault("refused", "ended")
    watch.detected()
    line.subscriber.until(lambda _: reconnects(line, "refused") >= before + attempts, timeout_s=2 * attempts + 5)
    line.proxy.admit()
    watch.over()
    line.judged_again()
    watch.recovered()
    line.check()


def reconnects(line, reason):
    """How often the daemon has tried anew for that reason."""
    counted = counters(line.daemon.scrape(), "inspectd_camera_reconnects_total")
    return counted.get(f'camera="line",reason="{reason}"', 0)


@fault(
    GROUP,
    "Password changed",
    injected="the camera comes back with another password; later the credentials file has it, too",
    does="camera `fault: auth`, one attempt in 30 s, so that no account is locked; then goes on by itself. No "
    "password, old or new, is logged or published",
    protection="the retry interval for `auth`; the credentials file is read at each attempt; FFmpeg's own texts are "
    "never passed on",
    detect_s=5,
    recover_s=36,
    settings=SETTINGS,
)
@pytest.mark.parametrize("retry_s", [2.0, pytest.param(camera.AUTH_RETRY_S, marks=pytest.mark.soak)])
def test_a_changed_password_is_asked_for_and_told_to_nobody(folder, monkeypatch, capfd, watch, retry_s):
    """Whoever reads logs, stream or the process's standard error learns that it is wrong, and not what it is."""
    old, new = "0ld-s3cret", "n3w-s3cret"
    secrets = folder / "credentials"
    secrets.write_text(f"admin:{old}\n")
    monkeypatch.setattr(camera, "AUTH_RETRY_S", retry_s)
    clip = numbered_clip(folder / "clip.mp4")
    before, after = (RtspServer(clip, auth=("admin", password)) for password in (old, new))
    after.port = before.port
    config = write_config(folder, "auth", [("line", before.url, f'{KEYS}credentials_file = "credentials"', ROIS)])
    with before, running_daemon(monkeypatch, config, make_source) as daemon, Line(daemon) as line:
        line.verdict(lambda m: m["verdict"] == "pass")
        before.stop()
        watch.injected()
        with after:
            line.until(lambda topic, m: topic == "status/line/" and m["reason"] == "auth")
            watch.detected()
            for _ in range(2):  # heartbeats, half a second apart
                line.state("fault")
            secrets.write_text(f"admin:{new}\n")
            watch.over()
            line.verdict(lambda m: m["verdict"] == "pass", timeout_s=retry_s + 10)
            watch.recovered()
            retried = {"camera": "line", "reason": "auth"}
            retries = daemon.metrics.registry.get_sample_value("inspectd_camera_reconnects_total", retried)
            assert retries == 1, "the wrong password was sent again and again"
    assert all(account.balanced for account in daemon.ledger.snapshot())
    verdicts = [m for topic, m in line.messages if topic.startswith("verdict/")]
    assert untrue(verdicts, [*before.began, *after.began], oldest_s=1.0) == []
    logged = "".join(capfd.readouterr()) + repr(line.messages)
    assert "credentials" in logged
    assert "s3cret" not in logged


@fault(
    GROUP,
    "Packets lost (UDP)",
    injected="a proxy drops 1 % of the RTP packets, of which a picture takes about seven",
    does="damaged pictures, and those after them until the next clean key picture, are `corrupt`; the rest is judged",
    protection="gaps in the RTP sequence mark pictures as damaged until the next key picture",
    detect_s=5,
    recover_s=3,
    settings='transport = "udp", HEVC, key pictures every 0.75 s',
)
def test_lost_packets_are_damage_and_no_wrong_picture_is_judged(udp_line, watch):
    """What a P picture does not find in its reference it copies from another: wrong, and clean to look at."""
    udp_line.proxy.meddle = lose(0.01)
    watch.injected()
    udp_line.refused("corrupt")
    watch.detected()
    udp_line.subscriber.for_seconds(2)
    udp_line.proxy.meddle = leave
    watch.over()
    udp_line.judged_again()
    watch.recovered()
    verdicts = udp_line.check()
    assert any(m["verdict"] == "pass" for m in verdicts), "nothing was judged between the losses"


@pytest.mark.soak
@fault(
    GROUP,
    "Packets out of order (UDP)",
    injected="a proxy lets 20 % of the RTP packets be overtaken by the one behind them, then 5 % by six",
    does="what is out of order by a little is put in order again and judged; what comes too late is lost: `corrupt`",
    protection="the queue that puts packets in order; late packets count as lost",
    detect_s=5,
    recover_s=3,
    settings='transport = "udp", HEVC, key pictures every 0.75 s',
)
def test_packets_out_of_order_are_put_in_order_or_are_damage(udp_line, watch):
    """A picture is judged whole or not at all."""
    udp_line.proxy.meddle = reorder(0.2, by=1)
    udp_line.judged_again()
    begun = len(udp_line.subscriber.messages)
    udp_line.subscriber.for_seconds(1.5)
    slightly = udp_line.subscriber.messages[begun:]
    assert [m for m in slightly if m.get("verdict") and m["reason"] == "corrupt"] == []
    udp_line.proxy.meddle = reorder(0.05, by=6)
    watch.injected()
    udp_line.refused("corrupt")
    watch.detected()
    udp_line.subscriber.for_seconds(1)
    udp_line.proxy.meddle = leave
    watch.over()
    udp_line.judged_again()
    watch.recovered()
    udp_line.check()
