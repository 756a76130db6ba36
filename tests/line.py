"""The whole daemon inside the test process, with a camera of the test's own, and a client that triggers it."""

import functools
import json
import threading
import time
from collections import Counter, defaultdict
from contextlib import contextmanager

import zmq

from inspectd import station
from inspectd.capture.camera import Camera
from inspectd.config import load_settings
from inspectd.daemon import Daemon
from inspectd.observe.systemd import Notifier


@contextmanager
def running_daemon(monkeypatch, config, make_source):
    """A daemon on that configuration file, started; its cameras are what `make_source` makes."""
    monkeypatch.setattr(station, "Camera", functools.partial(Camera, make_source=make_source))
    daemon = Daemon(load_settings(config, {}), Notifier(None), reread=lambda: load_settings(config, {}))
    ended = []

    def run():
        try:
            ended.append(daemon.run())
        except BaseException as err:
            ended.append(err)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        while not daemon.started.wait(0.05):
            assert thread.is_alive(), ended
        yield daemon
    finally:
        daemon.stop()
        thread.join(10)
    assert ended == [0]


class TriggerClient:
    """Triggers as fast as the daemon takes them, and keeps every answer. One thread."""

    def __init__(self, daemon, rois):
        self.rois = rois
        self.context = zmq.Context()
        self.control = self.context.socket(zmq.DEALER)
        self.stream = self.context.socket(zmq.SUB)
        for socket in (self.control, self.stream):
            socket.set(zmq.LINGER, 0)
            socket.set(zmq.RCVHWM, 0)
        self.stream.subscribe("verdict/")
        self.stream.subscribe("heartbeat/")
        self.stream.connect(daemon.publisher.endpoint)
        self.control.connect(daemon.publisher.control_endpoint)
        assert self.stream.poll(5000)  # subscribed: the first heartbeat is here
        self.poller = zmq.Poller()
        self.poller.register(self.control, zmq.POLLIN)
        self.poller.register(self.stream, zmq.POLLIN)
        self.sent_at = {}  # request id -> monotonic seconds
        self.accepted = {}  # trigger_id -> (reply, monotonic seconds before it was sent)
        self.refused = Counter()
        self.answers = defaultdict(list)  # (trigger_id, roi) -> verdicts
        self.asked = 0
        self.complete = 0  # triggers with their last region's answer

    def trigger(self, deadline_ms, camera="line1", **fields):
        """Send one request; the reply comes with `turn`."""
        self.asked += 1
        self.sent_at[self.asked] = time.monotonic()
        request = {"op": "trigger", "id": self.asked, "camera": camera, "deadline_ms": deadline_ms, **fields}
        self.control.send(json.dumps(request).encode())

    def turn(self, timeout_s=0.001):
        """Take in what has come."""
        for socket, _ in self.poller.poll(timeout_s * 1000):
            try:
                while True:
                    frames = socket.recv_multipart(zmq.NOBLOCK)
                    self.take_reply(frames[-1]) if socket is self.control else self.take_message(*frames)
            except zmq.Again:
                pass

    def take_reply(self, body):
        reply = json.loads(body)
        sent_at = self.sent_at.pop(reply["id"])
        if reply["ok"]:
            self.accepted[reply["trigger_id"]] = (reply, sent_at)
        else:
            self.refused[reply["error"]["code"]] += 1

    def take_message(self, topic, body):
        if topic.startswith(b"verdict/"):
            verdict = json.loads(body)
            if not verdict["replayed"]:
                self.answers[verdict["trigger_id"], verdict["roi"]].append(verdict)
                self.complete += verdict["roi"] == self.rois[-1]

    @property
    def open(self):
        """Accepted triggers without all of their answers, more or less: an answer may overtake its reply."""
        return len(self.accepted) - self.complete

    def close(self):
        self.control.close()
        self.stream.close()
        self.context.term()


class Line:
    """Asks the control socket and listens to the stream, one after the other."""

    def __init__(self, daemon):
        self.daemon = daemon
        self.context = zmq.Context()
        self.control = self.context.socket(zmq.REQ)
        self.stream = self.context.socket(zmq.SUB)
        for socket in (self.control, self.stream):
            socket.set(zmq.LINGER, 0)
            socket.set(zmq.RCVHWM, 0)
        self.stream.subscribe("")
        self.stream.connect(daemon.publisher.endpoint)
        self.control.connect(daemon.publisher.control_endpoint)
        self.messages = []
        self.until(lambda topic, _: topic == "heartbeat/")

    def ask(self, op, **fields):
        """The reply to one request."""
        self.control.send(json.dumps({"op": op, **fields}).encode())
        assert self.control.poll(20_000), f"no reply to {op}"
        return json.loads(self.control.recv())

    def until(self, wanted, timeout_s=20.0):
        """Everything received until `wanted(topic, message)`, that one last; repeats are left out."""
        received = []
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            if self.stream.poll(left * 1000):
                topic, body = self.stream.recv_multipart()
                message = json.loads(body)
                if not message.get("replayed"):
                    received.append((topic.decode(), message))
                    self.messages.append(received[-1])
                if wanted(topic.decode(), message):
                    return received
        raise AssertionError(f"not within {timeout_s} s; last: {received[-3:]}")

    def verdict(self, wanted=lambda verdict: True, timeout_s=20.0):
        """The next verdict of which `wanted` is true."""
        return self.until(lambda topic, m: topic.startswith("verdict/") and wanted(m), timeout_s)[-1][1]

    def state(self, state):
        """Wait for a heartbeat that says so; its reason."""
        return self.until(lambda topic, m: topic == "heartbeat/" and m["state"] == state)[-1][1]["reason"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.control.close()
        self.stream.close()
        self.context.term()
