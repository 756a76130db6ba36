"""What was judged at the desk is judged so on the line: the same pictures, through planes, H.264 and the daemon.

With INSPECTD_PARITY_DATA (a folder of labelled pictures) and INSPECTD_PARITY_BUNDLE (a bundle that did not train on
them) the same tests run on those; without, on drawn pictures.
"""

import os
import socket
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from daemon_process import DaemonProcess, Subscriber
from test_workshop_train import quick_bundle, write_pictures

from inspectd.config import DecisionConfig
from inspectd.frame import Box, Frame
from inspectd.model.bundle import load_bundle
from inspectd.model.data import open_dataset
from inspectd.model.export import openvino_logits
from inspectd.model.pictures import read_picture
from inspectd.model.preprocess import Preprocessor, preprocess_picture
from inspectd.verdict.decide import Decider

PICTURES = 200


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    if path := os.environ.get("INSPECTD_PARITY_BUNDLE"):
        return load_bundle(Path(path))
    return quick_bundle(tmp_path_factory)[1]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Up to 200 pictures, uint8 RGB [H, W, 3] of even sides, that the bundle has not seen."""
    if path := os.environ.get("INSPECTD_PARITY_DATA"):
        dataset = open_dataset(Path(path))
        paths = [sample.path for sample in dataset.splits.get("test", dataset.splits["val"])]
    else:
        root = write_pictures(tmp_path_factory.mktemp("test"), {"good": 67, "stain": 67, "empty": 66}, seed=9, side=64)
        paths = sorted(root.rglob("*.png"))
    chosen = np.random.default_rng(0).permutation(len(paths))[:PICTURES]
    read = [read_picture(paths[index]) for index in chosen]
    return [picture[: len(picture) // 2 * 2, : picture.shape[1] // 2 * 2] for picture in read]


def as_planes(rgb):
    """The picture as a decoder delivers it: yuv420p, limited range, BT.601, by libswscale."""
    video = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24").reformat(
        format="yuv420p", dst_colorspace="ITU601", dst_color_range="MPEG", interpolation="BICUBIC"
    )
    planes = tuple(
        np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
        for plane in video.planes
    )
    height, width = rgb.shape[:2]
    return Frame(
        format="yuv420p", width=width, height=height, planes=planes, matrix="bt601", full_range=False,
        arrival=0.0, captured_at=0.0, clock="arrival",
    )  # fmt: skip


def test_training_and_the_line_see_the_same(bundle, pictures):
    """On average within 2 of 255 per picture set, and the top class agrees on 99 of 100."""
    spec = bundle.manifest.preprocess
    line = Preprocessor(spec)
    trained = np.stack([preprocess_picture(picture, spec) for picture in pictures])
    served = np.empty_like(trained)
    for picture, out in zip(pictures, served, strict=True):
        height, width = picture.shape[:2]
        line(as_planes(picture), Box(0, 0, width, height), out)
    difference = float(np.abs(trained.astype(int) - served.astype(int)).mean())
    copy = bundle.copy_path(bundle.copies[-1])
    agree = openvino_logits(copy, trained).argmax(1) == openvino_logits(copy, served).argmax(1)
    print(f"{len(pictures)} pictures: mean difference {difference:.2f} of 255, top class agrees on {agree.mean():.1%}")
    assert difference <= 2.0
    assert agree.mean() >= 0.99


def test_a_video_of_the_pictures_gets_the_verdicts_of_the_desk(bundle, pictures, tmp_path):
    """Written as H.264, run through the daemon, frame by frame: the decision rule on the same logits."""
    size = (max(p.shape[1] for p in pictures), max(p.shape[0] for p in pictures))
    clip = tmp_path / "pictures.mp4"
    with av.open(str(clip), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.options = {"crf": "6", "preset": "veryfast"}
        stream.gop_size = 10
        for picture in pictures:
            scaled = cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR)
            frame = av.VideoFrame.from_ndarray(scaled, format="rgb24")
            out.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace="ITU601", dst_color_range="MPEG")))
        out.mux(stream.encode())
    with socket.socket() as probe:  # the recording waits for nobody: the port is known before the start
        probe.bind(("127.0.0.1", 0))
        endpoint = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    config = tmp_path / "config.toml"
    config.write_text(
        f'[model]\nbundle = "{bundle.path}"\n[engine]\ndevice = "cpu"\n'
        '[control]\nbind = "tcp://127.0.0.1:*"\n'
        f'[publish]\nbind = "{endpoint}"\n[http]\nbind = "127.0.0.1:0"\n[log]\nformat = "json"\n'
        f'[[cameras]]\nname = "desk"\nsource = "file:{clip}"\n'
        f'[[cameras.rois]]\nname = "part"\nbox = [0, 0, {size[0]}, {size[1]}]\n'
    )
    spec = bundle.manifest.preprocess
    scaled = [cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR) for picture in pictures]
    seen = np.stack([preprocess_picture(picture, spec) for picture in scaled])
    decide = Decider(bundle.manifest, DecisionConfig()).decide
    wanted = [decide(row) for row in openvino_logits(bundle.copy_path(bundle.copies[-1]), seen)]

    with Subscriber(endpoint, ("verdict/",)) as subscriber, DaemonProcess(config):
        subscriber.until(lambda m: m["frame"]["index"] == len(pictures) - 1, 60)
        got = {m["frame"]["index"]: m for m in subscriber.verdicts if not m["replayed"]}
    same = [
        (got[index]["verdict"], got[index]["label"]) == (decision.verdict, decision.label)
        for index, decision in enumerate(wanted)
        if index in got
    ]
    print(f"{len(got)} of {len(pictures)} frames received, verdict and label agree on {np.mean(same):.1%}")
    assert len(got) >= 0.9 * len(pictures)  # a subscriber joins late; a recording does not wait for it
    assert np.mean(same) >= 0.97
    worse = [i for i, d in enumerate(wanted) if i in got and got[i]["verdict"] == "pass" and d.verdict == "fail"]
    assert not worse
