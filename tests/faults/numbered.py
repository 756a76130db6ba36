"""Pictures that say which they are: each judgement can be held against the picture that was sent, and its age.

A kind is shown for `HELD` pictures: what a P picture does not code anew is copied from the ones before it, and what was
copied from the wrong one is wrong for everybody to see. Beside `part`, whose kinds follow a pseudo-random sequence,
three regions show the number of the group of pictures, in digits that are kinds as well (base 4).
"""

import time
from collections import defaultdict
from datetime import datetime

import numpy as np
from colour_bundle import COLOURS
from media import access_units, write_clip
from plant import Plant
from test_daemon import KINDS, kind_of, unbalanced, write_config

FPS = 20
HELD = 5
COUNT = 300  # 15 s, then it begins anew; nothing that is older can be taken for new before that
SIZE = (192, 128)
PART = (16, 16, 64, 96)
DIGITS = [(104, 12, 64, 28), (104, 50, 64, 28), (104, 88, 64, 28)]
ROIS = {"part": PART} | {f"digit{place}": box for place, box in enumerate(DIGITS)}


def kinds(group):
    """What each region shows in that group of pictures: {ROI: kind}."""
    digits = {f"digit{place}": KINDS[group // 4**place % 4] for place in range(3)}
    return {"part": kind_of(group)} | digits


def picture(index):
    """uint8 RGB of the scene at that index."""
    rgb = np.full((SIZE[1], SIZE[0], 3), 128, np.uint8)
    for roi, kind in kinds(index // HELD).items():
        x, y, width, height = ROIS[roi]
        rgb[y - 4 : y + height + 4, x - 4 : x + width + 4] = COLOURS[kind]
    return rgb


def rich(index):
    """The same scene between noise: every picture takes several RTP packets, and some of them may be lost."""
    rgb = picture(index)
    noise = np.random.default_rng(index).integers(-40, 41, (*rgb.shape[:2], 1), np.int16)
    return np.where((rgb == 128).all(2, keepdims=True), rgb + noise, rgb).astype(np.uint8)


def numbered_clip(path, scene=picture, *, count=COUNT, **how):
    """The scene as a video file, a key picture every 15."""
    settings = {"size": SIZE, "fps": FPS, "gop": 15, "picture": scene, "barcode": False} | how
    return write_clip(path, count, **settings)


def numbered_units(path, scene=picture, **how):
    """The same as coded pictures, for `RtspServer(scenes=...)`."""
    return access_units(numbered_clip(path, scene, **how))


class NumberedPlant(Plant):
    """A daemon before one numbered camera, `line`, behind `proxy`, with the settings `keys`.

    `check` holds what was judged since the last one against what was sent, and is the last thing a test does.
    """

    def __init__(self, folder, server, proxy, keys, name="line"):
        config = write_config(folder, name, [("line", proxy.url, keys, ROIS)])
        super().__init__(config, truth=lambda message: message["label"])  # `untrue` knows more
        self.server = server
        self.proxy = proxy
        self.checked = 0  # of the subscriber's messages

    def settled(self):
        """Forget what has come so far, and wait until a picture is judged again."""
        while self.subscriber.receive(0) is not None:
            pass
        self.checked = len(self.subscriber.messages)
        self.judged_again()
        return self

    def judged_again(self, after=None, timeout_s=20.0):
        """The next pass or fail that was published from now on, of a picture that came later than that verdict's."""
        since = time.time()
        index = after["frame"]["index"] if after else -1
        return self.subscriber.until(
            lambda m: (
                m.get("verdict") in ("pass", "fail")
                and not m["replayed"]
                and published(m) > since
                and m["frame"]["index"] > index
            ),
            timeout_s,
        )

    def reconnected(self):
        """The camera has gone and come, and a picture of the new connection is judged."""
        self.fault("ended")
        first = self.refused("stale")  # as every connection's first half second is
        self.judged_again(first)

    def refused(self, reason, timeout_s=20.0):
        """The next verdict that is no result for that reason."""
        return self.subscriber.until(
            lambda m: "verdict" in m and m["reason"] == reason and not m["replayed"], timeout_s
        )

    def fault(self, *reasons, timeout_s=20.0):
        """The next status that says the camera is at fault, for one of these reasons; then nobody is told READY."""
        status = self.subscriber.until(
            lambda m: m["topic"] == "status/line/" and m["state"] == "fault" and m["reason"] in reasons, timeout_s
        )
        assert not self.ready
        return status

    def check(self, oldest_s=1.0, servers=(), *, honest_pts=True):
        """The books balance, and whatever was judged was sent so, and not `oldest_s` before it was published."""
        assert unbalanced(self.daemon.scrape()) == []
        fresh = [m for m in self.subscriber.messages[self.checked :] if "verdict" in m and not m["replayed"]]
        self.checked = len(self.subscriber.messages)
        began = [at for server in (self.server, *servers) for at in server.began]
        wrong = untrue(fresh, began, oldest_s, honest_pts=honest_pts)
        assert not wrong, f"{len(wrong)} frames, the first: {wrong[0]}"
        return fresh


def published(message):
    """Unix seconds."""
    return datetime.fromisoformat(message["published_at"]).timestamp()


def shown(message):
    """Index of the picture that was sent at the stream time of a verdict's frame."""
    return round(message["frame"]["pts"] * FPS) % COUNT


def untrue(verdicts, began, oldest_s, *, honest_pts=True):
    """What was said of frames that were never sent so, or too long ago: [(why, the frame's verdicts)].

    With `honest_pts` the stream's time says which picture a frame should be, else (or where it has none) its digits do.
    """
    frames = defaultdict(dict)  # index -> {ROI: verdict}
    for verdict in verdicts:
        if verdict["frame"] is not None:
            frames[verdict["frame"]["index"]][verdict["roi"]] = verdict
    wrong = []
    for regions in frames.values():
        said = {roi: verdict for roi, verdict in regions.items() if verdict["reason"] is None}
        group = None
        if honest_pts and said and (one := next(iter(said.values())))["frame"]["pts"] is not None:
            group = shown(one) // HELD
        elif len(said) == len(ROIS):
            group = sum(KINDS.index(said[f"digit{place}"]["label"]) * 4**place for place in range(3))
        if not {verdict["reason"] for verdict in regions.values()}.isdisjoint({"uncertain", "engine_error"}):
            wrong.append(("no picture has such a region", regions))
        elif group is not None and any(verdict["label"] != kinds(group)[roi] for roi, verdict in said.items()):
            wrong.append(("the picture was another", regions))
        elif group is not None and (old_s := age(group, published(next(iter(said.values()))), began)) > oldest_s:
            wrong.append((f"{old_s:.2f} s old", regions))
    return wrong


def age(group, at, began):
    """How long ago (seconds) a camera that runs since the last of `began` showed the group's last picture, at least."""
    length = COUNT / FPS
    since = max((start for start in began if start < at), default=at)
    old_s = (at - since - (group + 1) * HELD / FPS) % length
    return old_s if old_s < length - 1 else old_s - length
