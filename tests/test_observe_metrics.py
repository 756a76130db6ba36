"""The ledger's identity and the metrics read from it."""

import itertools
import threading
import time
from typing import get_args

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from line_sockets import Peer
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from inspectd.config import CameraConfig, PublishConfig
from inspectd.errors import CaptureReason
from inspectd.observe.ledger import Ledger
from inspectd.observe.metrics import SECONDS_BUCKETS, Metrics, Stage
from inspectd.verdict.publisher import Publisher
from inspectd.verdict.teller import Roster

ROIS = [("cam1", "left"), ("cam1", "right"), ("cam2", "lid")]
VERDICTS = [("pass", ""), ("fail", ""), ("no_result", ""), ("no_result", "stale")]
DROPS = ["max_fps", "overload"]


@pytest.fixture
def ledger():
    return Ledger(ROIS)


@pytest.fixture
def metrics(ledger):
    return Metrics(ledger, ["cam1", "cam2"], verdicts=VERDICTS, drops=DROPS)


def scrape(metrics):
    """One scrape: {(sample name, sorted labels): value}."""
    body, _ = metrics.exposition("")
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def value(metrics, name, **labels):
    return scrape(metrics)[name, *sorted(labels.items())]


def imbalance(samples):
    """captured - verdicts - dropped - in flight of one scrape, by (camera, roi)."""
    left = {}
    for camera, roi in ROIS:
        where = {("camera", camera), ("roi", roi)}

        def total(name, where=where):
            return sum(v for (n, *labels), v in samples.items() if n == name and where <= set(labels))

        left[camera, roi] = (
            samples["inspectd_frames_captured_total", ("camera", camera)]
            - total("inspectd_verdicts_total")
            - total("inspectd_frames_dropped_total")
            - total("inspectd_frames_in_flight")
        )
    return left


BALANCED = dict.fromkeys(ROIS, 0)


# -- the ledger ---------------------------------------------------------------------------------------


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("captured"), st.sampled_from(["cam1", "cam2"])),
            st.tuples(st.just("verdict"), st.integers(0, 99), st.sampled_from(VERDICTS)),
            st.tuples(st.just("dropped"), st.integers(0, 99), st.sampled_from(DROPS)),
        ),
        max_size=60,
    )
)
def test_every_frame_is_accounted_for_after_every_step(steps):
    """captured == verdicts + dropped + in flight, against a plain model, whatever the order."""
    ledger = Ledger(ROIS)
    open_tickets, captured, settled = [], {"cam1": 0, "cam2": 0}, dict.fromkeys(ROIS, 0)
    for what, which, *rest in steps:
        if what == "captured":
            index, tickets = ledger.captured(which)
            assert index == captured[which]
            captured[which] += 1
            assert [(t.camera, t.roi) for t in tickets] == [key for key in ROIS if key[0] == which]
            open_tickets += tickets
        elif open_tickets:
            ticket = open_tickets.pop(which % len(open_tickets))
            settled[ticket.camera, ticket.roi] += 1
            if what == "verdict":
                ledger.verdict(ticket, *rest[0])
            else:
                ledger.dropped(ticket, rest[0])
        for counts in ledger.snapshot():
            assert counts.balanced
            assert counts.captured == captured[counts.camera]
            assert counts.captured - counts.in_flight == settled[counts.camera, counts.roi]
        assert ledger.in_flight == len(open_tickets)


@pytest.mark.parametrize("first", ["verdict", "dropped"])
@pytest.mark.parametrize("second", ["verdict", "dropped"])
def test_settling_a_frame_twice_is_refused_and_counts_nothing(ledger, first, second):
    """A second verdict for one frame is a defect of ours; it must not hide in the sums."""

    def settle(how):
        if how == "verdict":
            ledger.verdict(ticket, "fail", "", "scratch")
        else:
            ledger.dropped(ticket, "overload")

    _, (ticket,) = ledger.captured("cam2")
    settle(first)
    before = ledger.snapshot()
    with pytest.raises(AssertionError, match="cam2/lid: a frame was settled twice"):
        settle(second)
    assert ledger.snapshot() == before


def test_a_snapshot_does_not_change_afterwards(ledger):
    """It is a copy: what is counted later shows in the next one only."""
    _, tickets = ledger.captured("cam1")
    snapshot = ledger.snapshot()
    ledger.verdict(tickets[0], "fail", "", "dent")
    assert snapshot[0].in_flight == 1
    assert snapshot[0].verdicts == {}
    assert ledger.snapshot()[0].defects == {"dent": 1}


def test_threads_never_lose_a_frame_and_every_scrape_is_balanced(ledger, metrics):
    """Cameras and engines count at the same time as scrapes read: each scrape holds the identity."""
    handed_over, captured, enough, done = [], {}, threading.Event(), threading.Event()

    def capture(camera):
        while not enough.is_set():
            index, tickets = ledger.captured(camera)
            captured[camera] = index + 1
            handed_over.extend(tickets)
            time.sleep(0)

    def settle(verdict, reason):
        while True:
            try:
                ticket = handed_over.pop()
            except IndexError:
                if done.is_set():
                    return
                time.sleep(0)
                continue
            if reason == "overload":
                ledger.dropped(ticket, reason)
            else:
                ledger.verdict(ticket, verdict, reason)

    producers = [threading.Thread(target=capture, args=(camera,)) for camera in ("cam1", "cam2")]
    consumers = [
        threading.Thread(target=settle, args=args) for args in [("pass", ""), ("no_result", "stale"), ("", "overload")]
    ]
    for thread in producers + consumers:
        thread.start()
    seen = []
    while len(seen) < 50 or seen[-1] < 1000:
        samples = scrape(metrics)
        assert imbalance(samples) == BALANCED
        seen.append(samples["inspectd_frames_captured_total", ("camera", "cam1")])
    enough.set()
    for thread in producers:
        thread.join(20)
    done.set()
    for thread in consumers:
        thread.join(20)
    samples = scrape(metrics)
    assert len(set(seen)) > 10  # they did run at the same time
    assert imbalance(samples) == BALANCED
    for camera, count in captured.items():
        assert samples["inspectd_frames_captured_total", ("camera", camera)] == count
    assert ledger.in_flight == 0


# -- what is exported ---------------------------------------------------------------------------------


def test_every_series_is_there_with_zero_before_anything_happened(metrics):
    """rate() cannot see a counter's first step out of nothing, so nothing starts from nothing."""
    metrics.expect_defects("cam2", "lid", ["scratch", "dent"])
    samples = scrape(metrics)

    def labels_of(name):
        return {tuple(v for _, v in labels) for (n, *labels), _ in samples.items() if n == name}

    assert labels_of("inspectd_frames_captured_total") == {("cam1",), ("cam2",)}
    assert labels_of("inspectd_frames_in_flight") == set(ROIS)
    # sorted label names: camera, reason, roi, verdict
    assert labels_of("inspectd_verdicts_total") == {(c, why, r, v) for c, r in ROIS for v, why in VERDICTS}
    assert labels_of("inspectd_frames_dropped_total") == {(c, why, r) for c, r in ROIS for why in DROPS}
    assert labels_of("inspectd_defects_total") == {("cam2", "dent", "lid"), ("cam2", "scratch", "lid")}
    assert labels_of("inspectd_stage_seconds_count") == {(stage,) for stage in get_args(Stage)}
    assert labels_of("inspectd_capture_to_verdict_seconds_count") == {("cam1",), ("cam2",)}
    assert labels_of("inspectd_camera_reconnects_total") == {
        (camera, reason) for camera in ("cam1", "cam2") for reason in get_args(CaptureReason)
    }
    assert labels_of("inspectd_camera_up") == {("cam1",), ("cam2",)}
    for name in ("inspectd_batch_size_count", "inspectd_subscribers", "inspectd_ready"):
        assert samples[name,] == 0
    counters = {k: v for k, v in samples.items() if k[0].startswith("inspectd_") and k[0].endswith("_total")}
    assert set(counters.values()) == {0}


def test_what_happens_is_what_is_exported(ledger, metrics):
    """Each method moves its own series and no other."""
    metrics.expect_defects("cam2", "lid", ["scratch"])
    before = scrape(metrics)
    _, (ticket,) = ledger.captured("cam2")
    ledger.verdict(ticket, "fail", "", "scratch")
    _, (ticket,) = ledger.captured("cam2")
    ledger.dropped(ticket, "overload")
    ledger.captured("cam2")
    metrics.stage("engine")(0.02)
    metrics.capture_to_verdict("cam1")(0.0331)
    metrics.batch(5)
    metrics.camera_up("cam1", up=True)
    metrics.reconnect("cam1", "stall")
    metrics.set_subscribers(3)
    metrics.ask_ready(lambda: True)
    after = scrape(metrics)
    changed = {
        key: after[key] - before.get(key, 0)
        for key in after
        if after[key] != before.get(key) and key[0].startswith("inspectd_") and "_bucket" not in key[0]
    }
    ages = [key for key in changed if key[0] == "inspectd_last_frame_age_seconds"]
    for key in ages:
        del changed[key]
    lid = (("camera", "cam2"), ("roi", "lid"))
    assert changed == {
        ("inspectd_frames_captured_total", ("camera", "cam2")): 3,
        ("inspectd_verdicts_total", lid[0], ("reason", ""), lid[1], ("verdict", "fail")): 1,
        ("inspectd_defects_total", lid[0], ("label", "scratch"), lid[1]): 1,
        ("inspectd_frames_dropped_total", lid[0], ("reason", "overload"), lid[1]): 1,
        ("inspectd_frames_in_flight", *lid): 1,
        ("inspectd_stage_seconds_count", ("stage", "engine")): 1,
        ("inspectd_stage_seconds_sum", ("stage", "engine")): 0.02,
        ("inspectd_capture_to_verdict_seconds_count", ("camera", "cam1")): 1,
        ("inspectd_capture_to_verdict_seconds_sum", ("camera", "cam1")): 0.0331,
        ("inspectd_batch_size_count",): 1,
        ("inspectd_batch_size_sum",): 5,
        ("inspectd_camera_up", ("camera", "cam1")): 1,
        ("inspectd_camera_reconnects_total", ("camera", "cam1"), ("reason", "stall")): 1,
        ("inspectd_subscribers",): 3,
        ("inspectd_ready",): 1,
    }


def test_one_frame_time_at_30_fps_has_a_bucket_of_its_own(metrics):
    """The share of verdicts within 33 ms is read off exactly, not interpolated."""
    observe = metrics.capture_to_verdict("cam1")
    for seconds in (0.0329, 0.033, 0.0331):
        observe(seconds)
    assert value(metrics, "inspectd_capture_to_verdict_seconds_bucket", camera="cam1", le="0.033") == 2
    assert value(metrics, "inspectd_capture_to_verdict_seconds_bucket", camera="cam1", le="0.04") == 3


def test_buckets_are_finest_where_a_line_decides():
    """Neighbours between 5 and 50 ms differ by at most a half: so far off can a quantile be."""
    inside = [bound for bound in SECONDS_BUCKETS if 0.005 <= bound <= 0.05]
    assert inside[0] == 0.005
    assert inside[-1] == 0.05
    assert all(b / a <= 1.5 for a, b in itertools.pairwise(inside))


def test_the_age_of_the_last_frame_grows_by_itself_and_never_is_negative(metrics):
    """It is computed at the scrape: a camera that stopped shows, though nobody calls anything."""
    now = time.monotonic()
    metrics.frame_arrived("cam1", now - 7.5)
    metrics.frame_arrived("cam2", now + 60)
    ages = scrape(metrics)
    assert 7.5 <= ages["inspectd_last_frame_age_seconds", ("camera", "cam1")] < 60
    assert ages["inspectd_last_frame_age_seconds", ("camera", "cam2")] == 0


def test_before_the_first_frame_the_age_counts_from_the_start(metrics):
    """So that an alert on old frames also finds a camera that never came."""
    first = value(metrics, "inspectd_last_frame_age_seconds", camera="cam1")
    assert 0 <= first < value(metrics, "inspectd_last_frame_age_seconds", camera="cam1") < 60


def test_model_info_has_one_series_per_bundle_that_is_served(metrics):
    """A model that was exchanged is no longer shown."""
    served = {"architecture": "resnet18", "engine": "openvino", "device": "cpu", "precision": "bf16"}
    metrics.show_models({"aaaa": served, "bbbb": served})
    metrics.show_models({"aaaa": served | {"precision": "int8"}})
    models = [dict(key[1:]) for key in scrape(metrics) if key[0] == "inspectd_model_info"]
    assert models == [served | {"bundle": "aaaa", "precision": "int8"}]


def test_two_metrics_in_one_process_share_nothing(ledger):
    """No process-global registry: a test, a bench or a second daemon starts from zero."""
    first, second = (Metrics(ledger, ["cam1"]) for _ in range(2))
    first.ask_ready(lambda: True)
    first.batch(4)
    assert value(second, "inspectd_ready") == 0
    assert value(second, "inspectd_batch_size_count") == 0


def test_whether_it_is_ready_is_asked_at_each_scrape(metrics):
    """Nobody has to tell, and a probe that raises is a no that costs no other number."""
    answers = [True, False, True]
    metrics.ask_ready(lambda: answers.pop(0))
    assert [value(metrics, "inspectd_ready") for _ in range(3)] == [1, 0, 1]
    with capture_logs() as logs:
        assert value(metrics, "inspectd_ready") == 0
    assert [line["event"] for line in logs] == ["ready_probe_failed"]


def test_every_refused_trigger_is_counted_once_under_a_name_of_the_configuration(ledger, metrics):
    """Whatever the glue asks for, no label is made of it: what names no camera counts for none."""
    roi = {"name": "lid", "box": [0, 0, 16, 16]}
    cameras = tuple(CameraConfig(name=name, source="usb:0", rois=[roi]) for name in ("cam1", "cam2"))
    publisher = Publisher(
        PublishConfig(bind="tcp://127.0.0.1:*"),
        boot_id="b00t",
        roster=Roster(config="c", recipe=None, cameras=cameras, origins={}, parts={}),
        ledger=ledger,
        metrics=metrics,
        on_failure=lambda err: None,
    )
    publisher.start()
    try:
        with Peer(zmq.DEALER, publisher.control_endpoint) as glue:
            for camera, deadline_ms, code in (
                ("cam2", 100, "not_triggered"),
                ("cam3", 100, "unknown_camera"),
                ("cam4", 100, "unknown_camera"),
                ("cam2", "soon", "bad_request"),
                ("cam5", "soon", "bad_request"),
            ):
                reply = glue.ask({"op": "trigger", "camera": camera, "deadline_ms": deadline_ms})
                assert reply["error"]["code"] == code
    finally:
        publisher.stop(5)
    counted = {
        tuple(dict(labels).values()): n
        for (name, *labels), n in scrape(metrics).items()
        if name == "inspectd_triggers_total" and n
    }
    assert counted == {
        ("cam2", "not_triggered"): 1,
        ("", "unknown_camera"): 2,
        ("cam2", "bad_request"): 1,
        ("", "bad_request"): 1,
    }


def test_process_and_build_are_exported(metrics):
    """Memory and CPU of the daemon are watched too, and which build it is."""
    samples = scrape(metrics)
    assert samples["process_resident_memory_bytes",] > 10e6
    assert samples["process_cpu_seconds_total",] > 0
    assert samples["process_open_fds",] > 2
    assert any(key[0] == "inspectd_build_info" and "version" in dict(key[1:]) for key in samples)


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "text/plain; version=0.0.4"),
        ("application/openmetrics-text;version=1.0.0,text/plain;q=0.5", "application/openmetrics-text; version=1.0.0"),
        ("application/openmetrics-text; version=banana", "text/plain; version=0.0.4"),
    ],
)
def test_the_accept_header_chooses_the_format_and_nonsense_chooses_text(metrics, accept, content_type):
    """Nothing that a client writes there makes a scrape fail."""
    body, answered = metrics.exposition(accept)
    assert answered.startswith(content_type)
    assert body.endswith(b"# EOF\n") == answered.startswith("application/openmetrics")
    assert b"inspectd_frames_captured_total" in body


@given(st.text(max_size=80))
def test_no_accept_header_breaks_a_scrape_or_reaches_the_next_line(accept):
    """The content type repeats a part of the header, on one line."""
    metrics = Metrics(Ledger([("c", "r")]), ["c"])
    _, content_type = metrics.exposition("application/openmetrics-text;version=" + accept)
    assert "\n" not in content_type
    assert "\r" not in content_type
