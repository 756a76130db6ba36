"""The CUDA engine: its order on a simulated device, its network on the CPU, all of it where there is a GPU."""

from __future__ import annotations

import random
import shutil
from collections import deque
from collections.abc import Sequence

import numpy as np
import pytest
import simulated_device as sim

from inspectd.config import EngineConfig
from inspectd.engine.base import EngineInfo, Slot
from inspectd.engine.cuda import CudaEngine, batch_buckets
from inspectd.errors import BundleError, ConfigError, EngineError, FatalEngineError
from inspectd.model.bundle import WEIGHTS, Bundle, write_manifest
from inspectd.model.manifest import ClassSpec, Manifest
from inspectd.model.preprocess import PreprocessSpec

INFO = EngineInfo("cuda", "cuda:0", "fp16", "simulated")
MAX_BATCH = 64


class Ring:
    """Sends stamped slots through an engine as hastily as the contract allows, and counts wrong results."""

    def __init__(self, device: sim.SimulatedDevice, engine: CudaEngine, slots: int, seed: int) -> None:
        self.device = device
        self.engine = engine
        self.mismatches = 0
        self.checked = 0
        memory = engine.allocate(slots)
        engine.warm_up()
        self._free = [Slot(index, memory[index]) for index in range(slots)]  # newest first: reused at once
        self._sent: deque[np.ndarray] = deque()
        self._random = random.Random(seed)
        self._next = 1

    def run(self, slots: int, largest: int = MAX_BATCH) -> None:
        """Send at least so many slots in batches of 1 to `largest`, then collect what is left."""
        end = self._next + slots
        while self._next < end:
            self._send(self._random.randint(1, largest) if self._random.random() < 0.5 else largest)
            while self.engine.in_flight == self.engine.depth or (self._sent and self._random.random() < 0.2):
                self._check()
        while self._sent:
            self._check()

    def _send(self, count: int) -> None:
        batch = [self._free.pop() for _ in range(count)]
        stamps = np.arange(self._next, self._next + count, dtype=np.uint32)
        self._next += count
        self.device.words[[slot.index for slot in batch]] = stamps[:, None]
        self._sent.append(stamps)
        self.engine.submit(batch, self._release)

    def _release(self, slots: Sequence[Slot]) -> None:
        self.device.words[[slot.index for slot in slots]] = sim.POISON
        self._free.extend(slots)

    def _check(self) -> None:
        stamps = self._sent.popleft()
        logits = self.engine.collect()
        self.checked += len(stamps)
        if len(logits) != len(stamps):
            self.mismatches += len(stamps)
            return
        right = (logits[:, 0] == stamps & 0xFFFF) & (logits[:, 1] == stamps >> 16) & (logits[:, 2] == 0)
        self.mismatches += len(stamps) - int(right.sum())


def ring(device_type: type[sim.SimulatedDevice], engine_type: type[CudaEngine] = CudaEngine, seed: int = 1) -> Ring:
    device = device_type(MAX_BATCH, seed)
    # So few slots that each is in use again as soon as it is released.
    return Ring(device, engine_type(device, INFO, MAX_BATCH), slots=2 * MAX_BATCH + 8, seed=seed)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_million_stamped_slots_come_out_as_they_went_in(seed):
    """Late and torn copies, slots poisoned on release, two batches in flight: not one mismatch."""
    proof = ring(sim.SimulatedDevice, seed=seed)
    proof.run(1_000_000)
    assert proof.checked >= 1_000_000
    assert proof.mismatches == 0


def test_batches_split_for_lack_of_memory_come_out_as_they_went_in():
    """The device has memory for 8 at a time; 64 are submitted all the same, and run in pieces."""
    proof = ring(sim.SimulatedDevice)
    proof.device.fits = 8
    proof.run(60_000)
    assert proof.checked >= 60_000
    assert proof.mismatches == 0


class ReleasesAtOnce(CudaEngine):
    def submit(self, slots, release):
        super().submit(slots, lambda _: None)
        release(slots)


class CollectsTheNewest(CudaEngine):
    def collect(self):
        self._batches.reverse()
        return super().collect()


@pytest.mark.parametrize(
    ("device", "engine"),
    [
        (sim.NetworkDoesNotWaitForCopies, CudaEngine),
        (sim.HostDoesNotWaitForCopies, CudaEngine),
        (sim.HostDoesNotWaitForResults, CudaEngine),
        (sim.OneLaneForAll, CudaEngine),
        (sim.NetworkOnTheOtherLane, CudaEngine),
        (sim.RecordsTooEarly, CudaEngine),
        (sim.SimulatedDevice, ReleasesAtOnce),
        (sim.SimulatedDevice, CollectsTheNewest),
    ],
)
def test_each_protection_that_is_removed_is_noticed(device, engine):
    """The proof is worth something: without any one of the waits, the same run has mismatches."""
    proof = ring(device, engine)
    proof.run(20_000)
    assert proof.mismatches > 0


@pytest.mark.parametrize("device", [sim.CopiesDoNotWaitForNetwork, sim.ResultsOfAnEarlierRow])
def test_each_protection_of_split_batches_that_is_removed_is_noticed(device):
    proof = ring(device)
    proof.device.fits = 8
    proof.run(20_000)
    assert proof.mismatches > 0


def test_slots_are_released_once_each_and_before_their_results_are_there():
    device = sim.SimulatedDevice(4)
    engine = CudaEngine(device, INFO, 4)
    slots = [Slot(index, pixels) for index, pixels in enumerate(engine.allocate(8))]
    engine.warm_up()
    released: list[Slot] = []
    engine.submit(slots[:4], released.extend)
    engine.submit(slots[4:7], released.extend)
    engine.collect()
    assert released == slots[:7]
    engine.collect()
    assert released == slots[:7]


def test_buckets_are_the_powers_of_two_and_the_largest_batch():
    assert batch_buckets(1) == [1]
    assert batch_buckets(8) == [1, 2, 4, 8]
    assert batch_buckets(11) == [1, 2, 4, 8, 11]


def test_warm_up_prepares_each_bucket_in_each_lane():
    device = sim.SimulatedDevice(6)
    CudaEngine(device, INFO, 6).warm_up()
    assert device.prepared == [(bucket, lane) for bucket in (1, 2, 4, 6) for lane in (0, 1)]


def test_a_network_that_fits_only_small_batches_runs_them():
    """Out of memory in warm-up: larger buckets are left out, and large batches run in pieces from the start."""
    device = sim.SimulatedDevice(MAX_BATCH)
    device.fits = 16
    proof = Ring(device, CudaEngine(device, INFO, MAX_BATCH), slots=200, seed=5)
    proof.run(5_000)
    assert proof.mismatches == 0


def test_a_gpu_without_memory_for_one_picture_is_fatal_at_start():
    device = sim.SimulatedDevice(8)
    device.fits = 0
    with pytest.raises(FatalEngineError, match="no memory for even one picture"):
        CudaEngine(device, INFO, 8).warm_up()


def test_out_of_memory_halves_the_batch_for_good():
    """Memory that ran out once is not asked for again, though it may have come back."""
    proof = ring(sim.SimulatedDevice)
    proof.device.fits = 20
    proof.run(64, largest=64)
    proof.device.fits = 64
    before = proof.device.launches
    proof.run(1, largest=1)
    proof._send(64)
    proof._check()
    assert proof.mismatches == 0
    assert proof.device.launches - before == 1 + 4  # one picture, then 64 in four pieces of 16


def test_a_batch_without_memory_for_one_picture_fails_alone():
    """Its slots come back behind their copies; the engine goes on when there is memory again."""
    device = sim.SimulatedDevice(4)
    engine = CudaEngine(device, INFO, 4)
    slots = [Slot(index, pixels) for index, pixels in enumerate(engine.allocate(8))]
    engine.warm_up()
    released: list[Slot] = []
    device.words[:] = 7
    engine.submit(slots[:4], released.extend)
    device.fits = 0
    engine.submit(slots[4:], released.extend)
    np.testing.assert_array_equal(engine.collect(), [[7, 0, 0]] * 4)
    with pytest.raises(EngineError, match="no memory") as caught:
        engine.collect()
    assert not isinstance(caught.value, FatalEngineError)
    assert released == slots
    device.fits = 4
    engine.submit(slots[2:5], released.extend)
    np.testing.assert_array_equal(engine.collect(), [[7, 0, 0]] * 3)


@pytest.mark.parametrize("batches", [1, 2])
def test_a_lost_device_never_gives_a_result_again(batches):
    """Not for batches that had been submitted before, not when the device seems to be back, and no slot returns."""
    device = sim.SimulatedDevice(4)
    engine = CudaEngine(device, INFO, 4)
    slots = [Slot(index, pixels) for index, pixels in enumerate(engine.allocate(8))]
    engine.warm_up()
    released: list[Slot] = []
    for number in range(batches):
        engine.submit(slots[4 * number : 4 * number + 4], released.extend)
    device.lost = True
    with pytest.raises(FatalEngineError, match="illegal memory access"):
        engine.collect()
    device.lost = False
    for _ in range(2):
        with pytest.raises(FatalEngineError, match=r"cuda:0 was lost.*illegal memory access"):
            engine.collect()
        with pytest.raises(FatalEngineError, match="cuda:0 was lost"):
            engine.submit(slots[:1], released.extend)
    assert released == []
    engine.close()
    assert not device.closed


def test_a_device_lost_in_submit_is_fatal_and_stays_so():
    device = sim.SimulatedDevice(4)
    engine = CudaEngine(device, INFO, 4)
    slots = [Slot(index, pixels) for index, pixels in enumerate(engine.allocate(4))]
    engine.warm_up()
    engine.submit(slots[:2], lambda _: None)
    device.lost = True
    with pytest.raises(FatalEngineError):
        engine.submit(slots[2:], lambda _: None)
    device.lost = False
    with pytest.raises(FatalEngineError, match="was lost"):
        engine.collect()


def test_close_waits_for_the_device_and_may_be_called_twice():
    proof = ring(sim.SimulatedDevice)
    proof._send(64)
    proof._send(64)
    proof.engine.close()
    assert proof.engine.in_flight == 0
    assert proof.device.closed
    assert np.isfinite(proof.device.results(0)).all()
    assert np.isfinite(proof.device.results(1)).all()
    proof.engine.close()


# The real network, as far as it goes without a GPU.

SPEC = PreprocessSpec(width=64, height=48)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    """A ResNet18 with random weights, its batch normalisations given something to do."""
    import torch

    from inspectd.model.network import build_network, save_weights

    root = tmp_path_factory.mktemp("cuda-bundle")
    manifest = Manifest.model_construct(
        format_version=1,
        architecture="resnet18",
        classes=(
            ClassSpec(name="good", role="ok"),
            ClassSpec(name="bad", role="defect"),
            ClassSpec(name="none", role="empty"),
        ),
        preprocess=SPEC,
        files={},
    )
    torch.manual_seed(7)
    network = build_network(manifest)
    network.train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(8, 3, SPEC.height, SPEC.width))
    save_weights(network, root / WEIGHTS)
    return write_manifest(root, manifest)


def reference(bundle: Bundle, pixels: np.ndarray) -> np.ndarray:
    """Logits in float32 on the CPU, by the plain network and the definition of the preprocessing."""
    import torch

    from inspectd.model.network import build_network, load_weights

    network = build_network(bundle.manifest).eval()
    load_weights(network, bundle.path / WEIGHTS)
    scaled = (pixels.astype(np.float64) / 255 - SPEC.mean) / SPEC.std
    with torch.no_grad():
        logits: np.ndarray = network(torch.from_numpy(scaled.astype(np.float32).transpose(0, 3, 1, 2))).numpy()
    return logits


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SPEC.height, SPEC.width, 3), dtype=np.uint8)


def test_the_folded_network_behind_its_normalisation_is_the_plain_one(bundle):
    import torch
    from torch import nn

    from inspectd.engine.torch_device import load_network, normalised

    network = load_network(bundle)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    pixels = pictures(5)
    mean, std = torch.tensor(SPEC.mean) * 255, torch.tensor(SPEC.std) * 255
    inputs = normalised(torch.from_numpy(pixels), mean, std.reciprocal(), torch.float32)
    assert inputs.shape == (5, 3, SPEC.height, SPEC.width)
    assert inputs.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(network(inputs).numpy(), reference(bundle, pixels), atol=2e-5)


def test_weights_of_another_network_are_refused(tmp_path, bundle):
    from safetensors.torch import load_file, save_file

    from inspectd.engine.torch_device import load_network

    state = load_file(bundle.path / WEIGHTS)
    state["layer5.weight"] = state.pop("fc.weight")
    save_file(state, tmp_path / WEIGHTS)
    with pytest.raises(BundleError, match=r"fc\.weight is missing"):
        load_network(write_manifest(tmp_path, bundle.manifest))


def test_weights_that_are_copied_over_a_verified_bundle_never_run(tmp_path, bundle):
    """Between the check and the start of its engine: good weights, but not those that were hashed."""
    from safetensors.torch import load_file, save_file

    from inspectd.engine.torch_device import load_network

    shutil.copy(bundle.path / WEIGHTS, tmp_path)
    verified = write_manifest(tmp_path, bundle.manifest)
    save_file({name: tensor + 1 for name, tensor in load_file(bundle.path / WEIGHTS).items()}, tmp_path / WEIGHTS)
    with pytest.raises(BundleError, match=r"model\.safetensors: SHA-256 is"):
        load_network(verified)


def test_a_bundle_without_weights_is_refused(tmp_path, bundle):
    from inspectd.engine.torch_device import load_network

    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"onnx")
    with pytest.raises(BundleError, match=r"has no model\.safetensors"):
        load_network(write_manifest(tmp_path, bundle.manifest))


def test_int8_on_cuda_names_the_key(bundle):
    from inspectd.engine.torch_device import open_cuda_engine

    with pytest.raises(ConfigError, match=r"engine\.precision: int8 is for the CPU"):
        open_cuda_engine(bundle, EngineConfig(device="cuda", precision="int8"), 0, "test")


# The real device.


@pytest.fixture
def gpu():
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.mark.cuda
@pytest.mark.parametrize(("precision", "tolerance"), [("f32", 1e-3), ("fp16", 2e-2), ("bf16", 1e-1)])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_the_gpu_agrees_with_the_cpu(gpu, bundle, precision, tolerance, count):
    """Padded batches included, and relative to the spread of the logits."""
    from inspectd.engine.torch_device import open_cuda_engine

    engine = open_cuda_engine(bundle, EngineConfig(precision=precision, max_batch_size=8), 0, "test")
    memory = engine.allocate(8)
    engine.warm_up()
    memory[:] = pixels = pictures(8, seed=count)
    engine.submit([Slot(index, memory[index]) for index in range(count)], lambda _: None)
    logits = engine.collect()
    engine.close()
    right = reference(bundle, pixels)[:count]
    assert logits.shape == right.shape
    assert np.abs(logits - right).max() <= tolerance * max(1.0, np.abs(right).max())


@pytest.mark.cuda
def test_the_gpu_never_mixes_pictures(gpu, bundle):
    """Slots overwritten the moment they are released, two batches in flight, 40,000 pictures of known logits."""
    from inspectd.engine.torch_device import open_cuda_engine

    engine = open_cuda_engine(bundle, EngineConfig(max_batch_size=16), 0, "test")
    memory = engine.allocate(48)
    engine.warm_up()
    colours = np.array(list(np.ndindex(2, 2, 2)), np.uint8) * 255  # far apart, unlike pictures of noise
    samples = np.broadcast_to(colours[:, None, None], (8, SPEC.height, SPEC.width, 3))
    right = reference(bundle, samples)
    spread = np.abs(right[:, None] - right[None]).max(axis=2) + np.eye(len(right)) * 99
    tolerance = spread.min() / 2  # nearer to its own than to any other picture
    assert tolerance > 0.02  # and far above the rounding of fp16
    free = [Slot(index, memory[index]) for index in range(48)]
    sent: deque[list[int]] = deque()
    draw = random.Random(4)

    def release(slots):
        for slot in slots:
            slot.pixels[:] = 0
        free.extend(slots)

    checked = 0
    while checked < 40_000:
        batch = [free.pop() for _ in range(draw.randint(1, 16))]
        chosen = [draw.randrange(len(samples)) for _ in batch]
        for slot, sample in zip(batch, chosen, strict=True):
            slot.pixels[:] = samples[sample]
        engine.submit(batch, release)
        sent.append(chosen)
        if engine.in_flight == engine.depth:
            chosen = sent.popleft()
            errors = np.abs(engine.collect() - right[chosen]).max(axis=1)
            assert (errors < tolerance).all()
            checked += len(chosen)
    engine.close()


@pytest.mark.cuda
def test_make_engine_takes_the_gpu_by_itself(gpu, bundle):
    from inspectd.engine.select import make_engine

    engine = make_engine(bundle, EngineConfig())
    assert (engine.info.name, engine.info.device, engine.info.precision) == ("cuda", "cuda:0", "fp16")
    engine.close()


@pytest.mark.cuda
def test_the_gpu_is_faster_than_any_camera(gpu, bundle):
    """Not a benchmark: two batches of 8 in flight must give more than 500 pictures a second on any GPU."""
    import time

    from inspectd.engine.torch_device import open_cuda_engine

    engine = open_cuda_engine(bundle, EngineConfig(max_batch_size=8), 0, "test")
    slots = [Slot(index, pixels) for index, pixels in enumerate(engine.allocate(16))]
    engine.warm_up()
    began = time.perf_counter()
    for number in range(200):
        engine.submit(slots[:8] if number % 2 else slots[8:], lambda _: None)
        if engine.in_flight == engine.depth:
            engine.collect()
    engine.close()
    assert 200 * 8 / (time.perf_counter() - began) > 500
