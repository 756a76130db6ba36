"""Each part of the way alone: decoding, cropping, inferring."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from itertools import cycle, islice

import numpy as np

from inspectd.bench.measure import Clip, Sample, Stopwatch, as_frame, single_threaded_opencv
from inspectd.config import EngineConfig
from inspectd.engine.base import Slot
from inspectd.engine.select import make_engine
from inspectd.model.bundle import Bundle
from inspectd.model.preprocess import Preprocessor, PreprocessSpec


def decode_only(clip: Clip) -> Sample:
    """PyAV, one thread."""
    pictures = clip.pictures()
    for _ in islice(pictures, clip.warm_up):
        pass
    watch = Stopwatch()
    frames = sum(1 for _ in pictures)
    return watch.sample(frames)


def crop_only(clip: Clip, spec: PreprocessSpec) -> Sample:
    """Crop, resize and convert, from decoded frames (a few in turn, so that no cache holds them) into a slot."""
    frames = [as_frame(picture) for picture in islice(clip.pictures(), 8)]
    preprocess = Preprocessor(spec)
    slot = np.empty((spec.height, spec.width, 3), np.uint8)
    with single_threaded_opencv():
        for frame in frames:
            preprocess(frame, clip.box, slot)
        watch = Stopwatch()
        for frame in islice(cycle(frames), clip.frames):
            preprocess(frame, clip.box, slot)
        return watch.sample(clip.frames)


def engine_only(clip: Clip, bundle: Bundle, config: EngineConfig) -> Sample:
    """The engine as the daemon drives it: full batches, as many in flight as it takes."""
    with closing(make_engine(bundle, config)) as engine:
        size, depth = engine.max_batch_size, engine.depth
        memory = engine.allocate(size * depth)
        rng = np.random.default_rng(0)
        memory[:] = rng.integers(0, 256, memory.shape, dtype=np.uint8)
        slots = [Slot(index, pixels) for index, pixels in enumerate(memory)]
        batches = cycle([slots[first : first + size] for first in range(0, len(slots), size)])
        engine.warm_up()

        def infer(frames: int) -> int:
            judged = 0
            for left in range(frames, 0, -size):
                if engine.in_flight == depth:
                    judged += len(engine.collect())
                engine.submit(next(batches)[:left], _keep)
            while engine.in_flight:
                judged += len(engine.collect())
            return judged

        infer(clip.warm_up)
        watch = Stopwatch()
        return watch.sample(infer(clip.frames))


def _keep(slots: Sequence[Slot]) -> None:
    """The slots stay ours: their turn comes again with the next round."""
