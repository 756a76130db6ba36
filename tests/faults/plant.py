"""A daemon at work with a subscriber at its side, and the two checks that every fault must pass at the end.

Zero wrong PASS: each fresh judgement is held against the truth of its picture. The books: captured + without_frame =
verdicts + dropped + in flight, per camera and region, at the end of each test.
"""

import contextlib

from colour_bundle import VERDICTS
from daemon_process import DaemonProcess, Subscriber
from test_daemon import unbalanced


class Plant:
    """`inspectd run` on that configuration in its own process; `truth(verdict message)` is the kind it should show.

    Use as a context manager. At the end the books must balance, no judgement may be wrong and the exit code must be 0;
    a test that ends the daemon itself, or expects another end, sets `ends` to the exit code that it expects.
    """

    def __init__(self, config, truth, env=None, topics=("",), program=("-m", "inspectd"), curve=None):
        self.truth = truth
        self.topics = topics
        self.curve = curve
        self.ends = 0
        self.daemon = DaemonProcess(config, env, program)
        self.subscriber = None

    def __enter__(self):
        try:
            self.daemon.started()
            self.subscriber = Subscriber(self.daemon.endpoint, self.topics, self.curve)
        except BaseException:
            self.daemon.__exit__()
            raise
        return self

    def __exit__(self, kind, *exc):
        try:
            if kind is None:
                self.finish()
        finally:
            self.daemon.__exit__()
            self.subscriber.close()

    def finish(self):
        """The checks that every fault must pass."""
        if self.daemon.process.poll() is None:
            assert unbalanced(self.daemon.scrape()) == []
        assert self.daemon.stop() == self.ends
        self.subscriber.drain()
        assert wrong(self.fresh, self.truth) == []

    @property
    def fresh(self):
        """Verdicts as they were sent, without repeats."""
        return [m for m in self.subscriber.verdicts if not m["replayed"]]

    @property
    def judged(self):
        """Fresh verdicts that say something about the part: pass or fail."""
        return judged(self.fresh)

    def judgement(self, verdict=None, timeout_s=20.0):
        """The next pass or fail (or the next of that kind)."""
        wanted = {verdict} if verdict else {"pass", "fail"}
        return self.subscriber.until(lambda m: m.get("verdict") in wanted and not m["replayed"], timeout_s)

    def state(self, state, timeout_s=20.0):
        """The next heartbeat with that state ("ready", "fault", ...)."""
        return self.subscriber.until(lambda m: m["topic"].startswith("heartbeat/") and m["state"] == state, timeout_s)

    def camera(self, state, name="line", timeout_s=20.0):
        """The next status of that camera with that state."""
        return self.subscriber.until(
            lambda m: m["topic"] == f"status/{name}/" and m["state"] == state and not m.get("replayed"), timeout_s
        )

    @property
    def ready(self):
        """What /readyz says."""
        with contextlib.suppress(OSError):
            return self.daemon.status_code("/readyz") == 200
        return False


def judged(messages):
    """Of these verdicts those that say something about the part."""
    return [m for m in messages if m["verdict"] in ("pass", "fail")]


def wrong(messages, truth):
    """Judgements that do not fit what the picture shows; `truth(message)` is a kind of colour_bundle."""
    return [m for m in judged(messages) if (m["verdict"], m["label"]) != (VERDICTS[truth(m)], truth(m))]
