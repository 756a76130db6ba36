"""What the daemon is compared with: the loop that tutorials teach, and the best that one writes by hand."""

from __future__ import annotations

import queue
import threading
from typing import Any

import numpy as np

from inspectd.bench.measure import Clip, Sample, Stopwatch, as_frame, single_threaded_opencv
from inspectd.errors import InspectdError
from inspectd.frame import U8
from inspectd.model.bundle import WEIGHTS, Bundle
from inspectd.model.preprocess import Preprocessor
from inspectd.model.runtime import openvino_core

BATCH = 8


def plain_loop(clip: Clip, bundle: Bundle) -> Sample:
    """OpenCV reads, PIL and torchvision transform, eager float32 torch infers, one picture after the other.

    Raises:
        ImportError: torch or torchvision is not installed.
    """
    import cv2
    import torch
    from PIL import Image
    from torchvision import transforms

    from inspectd.model.network import build_network, load_weights

    spec, box = bundle.manifest.preprocess, clip.box
    network = build_network(bundle.manifest).eval()
    if WEIGHTS in bundle.manifest.files:
        load_weights(network, bundle.path / WEIGHTS)
    transform = transforms.Compose(
        [
            transforms.Resize((spec.height, spec.width)),
            transforms.ToTensor(),
            transforms.Normalize(spec.mean, spec.std),
        ]
    )
    video = cv2.VideoCapture(str(clip.path))
    watch, frames = Stopwatch(), 0
    with torch.no_grad():
        while True:
            read, bgr = video.read()
            if not read:
                break
            crop = cv2.cvtColor(bgr[box.y : box.y + box.height, box.x : box.x + box.width], cv2.COLOR_BGR2RGB)
            logits = network(transform(Image.fromarray(crop)).unsqueeze(0))
            int(logits.argmax())
            frames += 1
            if frames == clip.warm_up:
                watch = Stopwatch()
    video.release()
    return watch.sample(frames - clip.warm_up)


def two_threads(clip: Clip, bundle: Bundle, precision: str) -> Sample:
    """One thread decodes and crops into batches of 8, the other infers them with OpenVINO: nothing else is done.

    Of the project only the crop is used. `precision` is f32, bf16 or int8.
    """
    request = _compile(bundle, precision)
    spec = bundle.manifest.preprocess
    free: queue.Queue[U8] = queue.Queue()
    for _ in range(3):  # one is filled, one waits, one is read
        free.put(np.zeros((BATCH, spec.height, spec.width, 3), np.uint8))
    full: queue.Queue[tuple[U8, int] | BaseException | None] = queue.Queue()

    def produce() -> None:
        try:
            preprocess = Preprocessor(spec)
            batch, count = free.get(), 0
            for picture in clip.pictures():
                preprocess(as_frame(picture), clip.box, batch[count])
                count += 1
                if count == BATCH:
                    full.put((batch, count))
                    batch, count = free.get(), 0
            if count:
                full.put((batch, count))
            full.put(None)
        except BaseException as err:  # noqa: BLE001 - the top of a thread: it fails in the one that waits
            full.put(err)

    with single_threaded_opencv():
        producer = threading.Thread(target=produce, name="bench-decode", daemon=True)
        producer.start()
        watch, frames, warm = Stopwatch(), 0, 0
        while (item := full.get()) is not None:
            if isinstance(item, BaseException):
                raise InspectdError(f"bench: decoding ended: {item}") from item
            batch, count = item
            request.infer({0: batch}, share_inputs=True)
            request.get_output_tensor().data.argmax(axis=1)
            frames += count
            free.put(batch)
            if not warm and frames >= clip.warm_up:
                watch, warm = Stopwatch(), frames
        producer.join()
    return watch.sample(frames - warm)


def _compile(bundle: Bundle, precision: str) -> Any:
    """An infer request of the bundle's copy for batches of 8."""
    core = openvino_core()
    model = core.read_model(bundle.copy_path("openvino-int8" if precision == "int8" else "openvino"))
    spec = bundle.manifest.preprocess
    model.reshape([BATCH, spec.height, spec.width, 3])
    hint = {} if precision == "int8" else {"INFERENCE_PRECISION_HINT": precision}
    return core.compile_model(model, "CPU", hint).create_infer_request()
