"""The CPU engine on a real, tiny OpenVINO model, and the choice between engines."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inspectd.config import EngineConfig
from inspectd.engine import select
from inspectd.engine.base import Slot
from inspectd.engine.openvino import OpenVinoEngine, choose_precision
from inspectd.engine.select import make_engine
from inspectd.errors import BundleError, ConfigError, EngineError
from inspectd.model import bundle as model_bundle
from inspectd.model.bundle import Bundle, write_manifest
from inspectd.model.manifest import ClassSpec, Copy, Manifest
from inspectd.model.preprocess import PreprocessSpec
from inspectd.model.runtime import import_openvino

ov = import_openvino()
from openvino import opset13 as ops  # noqa: E402 - only after import_openvino

HEIGHT, WIDTH, CLASSES = 17, 19, 3  # odd sizes: no slot but the first is aligned to anything
BROKEN = 255  # a picture whose first value is this makes the model fail while it runs


def tiny_model(height: int = HEIGHT, width: int = WIDTH, classes: int = CLASSES) -> Any:
    """Logits are the means of R, G, B in 0..1; fails at run time for a picture that starts with BROKEN."""
    pixels = ops.parameter([-1, height, width, 3], np.uint8, name="pixels")
    first = ops.slice(ops.reshape(pixels, [-1], False), [0], [1], [1], [0])
    broken = ops.convert(ops.equal(first, ops.constant(np.array([BROKEN], np.uint8))), "i64")
    # 0 keeps the batch; 0 + 7 * 1 is a dimension that does not fit the number of elements.
    batch = ops.multiply(broken, ops.constant(np.array([7], np.int64)))
    shape = ops.concat([batch, ops.constant(np.array([height, width, 3], np.int64))], 0)
    scaled = ops.divide(ops.convert(pixels, "f32"), ops.constant(np.float32(255)))
    nothing = ops.multiply(
        ops.reduce_max(ops.convert(ops.reshape(pixels, shape, True), "f32"), [0, 1, 2, 3], False), np.float32(0)
    )
    means = ops.add(ops.reduce_mean(scaled, [1, 2], False), nothing)
    logits = ops.matmul(means, np.eye(3, classes, dtype=np.float32), False, False)
    return ov.Model([logits], [pixels], "tiny")


def write_bundle(
    root: Path,
    copies: tuple[Copy, ...] = ("openvino",),
    model: Callable[[], Any] = tiny_model,
    tamper: Callable[[Path], None] | None = None,
) -> Bundle:
    for copy in copies:
        (root / copy).mkdir(parents=True)
        ov.save_model(model(), root / copy / "model.xml", compress_to_fp16=False)
        if tamper is not None:
            tamper(root / copy / "model.xml")
    manifest = Manifest.model_construct(
        format_version=1,
        architecture="resnet18",
        classes=(
            ClassSpec(name="good", role="ok"),
            ClassSpec(name="bad", role="defect"),
            ClassSpec(name="none", role="empty"),
        ),
        preprocess=PreprocessSpec(width=WIDTH, height=HEIGHT),
        files={},
    )
    return write_manifest(root, manifest)


def stamped(slots: list[Slot], values: list[int]) -> None:
    for slot, value in zip(slots, values, strict=True):
        slot.pixels[:] = (value, value // 2, value // 4)


def expected(values: list[int]) -> np.ndarray:
    return np.array([[v / 255, (v // 2) / 255, (v // 4) / 255] for v in values], np.float32)


@pytest.fixture
def engine(tmp_path):
    """A warm f32 engine with twelve slots, batches of up to four."""
    engine = OpenVinoEngine(write_bundle(tmp_path), EngineConfig(precision="f32", max_batch_size=4, threads=2), "test")
    memory = engine.allocate(12)
    engine.warm_up()
    yield engine, [Slot(index, memory[index]) for index in range(12)]
    engine.close()


def test_memory_is_zeroed_contiguous_and_of_the_size_that_the_bundle_says(tmp_path):
    engine = OpenVinoEngine(write_bundle(tmp_path), EngineConfig(), "test")
    memory = engine.allocate(5)
    assert memory.shape == (5, HEIGHT, WIDTH, 3)
    assert memory.dtype == np.uint8
    assert memory.flags.c_contiguous
    assert not memory.any()
    engine.close()


def test_logits_are_those_of_the_pictures_in_the_order_of_the_slots(engine):
    engine, slots = engine
    batch = [slots[7], slots[0], slots[11], slots[3]]
    stamped(batch, [10, 200, 90, 4])
    engine.submit(batch, lambda _: None)
    np.testing.assert_allclose(engine.collect(), expected([10, 200, 90, 4]), atol=1e-5)


def test_a_thousand_batches_in_flight_two_at_a_time_never_mix_pictures(engine):
    """Random batch sizes, slots reused the moment they are released, results checked in order."""
    engine, slots = engine
    rng = np.random.default_rng(3)
    free, sent, checked = deque(slots), deque(), 0

    def release(done):
        for slot in done:
            slot.pixels[:] = 77  # whoever still reads it shows it
        free.extend(done)

    for _ in range(1000):
        batch = [free.popleft() for _ in range(rng.integers(1, 5))]
        values = rng.integers(0, 250, len(batch)).tolist()
        stamped(batch, values)
        engine.submit(batch, release)
        sent.append(values)
        if engine.in_flight == engine.depth:
            values = sent.popleft()
            np.testing.assert_allclose(engine.collect(), expected(values), atol=1e-5)
            checked += 1
    assert checked == 999
    assert engine.in_flight == 1


def test_slots_are_released_once_and_before_collect_returns(engine):
    engine, slots = engine
    released: list[Slot] = []
    engine.submit(slots[:3], released.extend)
    engine.submit(slots[3:5], released.extend)
    engine.collect()
    assert released[:3] == slots[:3]
    engine.collect()
    assert released == slots[:5]


def test_results_are_fresh_arrays_that_later_batches_do_not_change(engine):
    engine, slots = engine
    stamped(slots[:1], [100])
    engine.submit(slots[:1], lambda _: None)
    first = engine.collect()
    stamped(slots[:1], [200])
    engine.submit(slots[:1], lambda _: None)
    engine.collect()
    np.testing.assert_allclose(first, expected([100]), atol=1e-5)


def test_a_failing_picture_fails_its_batch_and_no_other(engine):
    """The batches before and behind it are right, and all slots come back."""
    engine, slots = engine
    released: list[Slot] = []
    stamped(slots[:6], [1, 2, BROKEN, 4, 5, 6])
    engine.submit(slots[:2], released.extend)
    engine.submit(slots[2:4], released.extend)
    np.testing.assert_allclose(engine.collect(), expected([1, 2]), atol=1e-5)
    engine.submit(slots[4:6], released.extend)
    with pytest.raises(EngineError, match=r"OpenVINO: .*hape"):
        engine.collect()
    np.testing.assert_allclose(engine.collect(), expected([5, 6]), atol=1e-5)
    assert released == slots[:6]
    stamped(slots[2:4], [7, 8])
    engine.submit(slots[2:4], released.extend)
    np.testing.assert_allclose(engine.collect(), expected([7, 8]), atol=1e-5)


def test_a_request_that_writes_nothing_gives_no_number(engine):
    """Scores of an earlier picture in the same slot can never come back as this one's."""
    engine, slots = engine
    stamped(slots[:1], [100])
    engine.submit(slots[:1], lambda _: None)
    engine.collect()

    class Idle:
        def start_async(self):
            pass

        def wait(self):
            pass

    engine._requests[0] = Idle()
    engine.submit(slots[:1], lambda _: None)
    assert np.isnan(engine.collect()).all()


def test_collect_waits_without_the_gil(tmp_path):
    """Another thread makes progress in pure Python while collect waits."""
    bundle = write_bundle(tmp_path, model=slow_model)
    engine = OpenVinoEngine(bundle, EngineConfig(precision="f32", threads=1), "test")
    memory = engine.allocate(2)
    engine.warm_up()
    engine.submit([Slot(0, memory[0]), Slot(1, memory[1])], lambda _: None)
    stamps: list[float] = []
    stop = threading.Event()

    def count():
        while not stop.is_set():
            stamps.append(time.perf_counter())

    thread = threading.Thread(target=count)
    thread.start()
    began = time.perf_counter()
    engine.collect()
    ended = time.perf_counter()
    stop.set()
    thread.join()
    engine.close()
    inside = [stamp for stamp in stamps if began < stamp < ended]
    # With the GIL held the counter could only run before and after.
    assert len(inside) > 1000


def slow_model() -> Any:
    """The tiny model behind enough matrix products to keep a core busy for tens of milliseconds."""
    pixels = ops.parameter([-1, HEIGHT, WIDTH, 3], np.uint8, name="pixels")
    flat = ops.reshape(ops.convert(pixels, "f32"), [-1, HEIGHT * WIDTH * 3], False)
    row = ops.matmul(flat, np.full((HEIGHT * WIDTH * 3, 1500), 1e-4, np.float32), False, False)
    square = ops.matmul(row, row, True, False)
    weights = np.full((1500, 1500), 1e-4, np.float32)
    for _ in range(4):
        square = ops.matmul(square, weights, False, False)
    total = ops.reduce_mean(square, [0], True)
    return ov.Model([ops.matmul(total, np.ones((1500, CLASSES), np.float32), False, False)], [pixels], "slow")


def test_close_waits_for_what_is_in_flight_and_may_be_called_twice(engine):
    engine, slots = engine
    engine.submit(slots[:4], lambda _: None)
    engine.close()
    assert engine.in_flight == 0
    engine.close()


def test_an_overwritten_model_file_does_not_change_a_running_engine(engine, tmp_path):
    """The weights are read, not mapped: retraining into the same folder harms nobody."""
    engine, slots = engine
    weights = tmp_path / "openvino" / "model.bin"
    assert str(weights) not in Path("/proc/self/maps").read_text()
    with weights.open("r+b") as file:
        file.write(b"\xff" * weights.stat().st_size)
    stamped(slots[:1], [50])
    engine.submit(slots[:1], lambda _: None)
    np.testing.assert_allclose(engine.collect(), expected([50]), atol=1e-5)


def test_the_batch_is_never_larger_than_configured(tmp_path):
    bundle = write_bundle(tmp_path)
    assert OpenVinoEngine(bundle, EngineConfig(max_batch_size=1), "test").max_batch_size == 1
    assert OpenVinoEngine(bundle, EngineConfig(max_batch_size=64, threads=2), "test").max_batch_size == 4


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def gray_model() -> Any:
    pixels = ops.parameter([-1, HEIGHT, WIDTH, 1], np.uint8)
    return ov.Model([ops.reduce_mean(ops.convert(pixels, "f32"), [1, 2], False)], [pixels], "gray")


def float_input_model() -> Any:
    pixels = ops.parameter([-1, HEIGHT, WIDTH, 3], np.float32)
    return ov.Model([ops.reduce_mean(pixels, [1, 2], False)], [pixels], "float")


def two_outputs_model() -> Any:
    pixels = ops.parameter([-1, HEIGHT, WIDTH, 3], np.uint8)
    means = ops.reduce_mean(ops.convert(pixels, "f32"), [1, 2], False)
    return ov.Model([means, ops.relu(means)], [pixels], "two")


def fixed_batch_model() -> Any:
    pixels = ops.parameter([2, HEIGHT, WIDTH, 3], np.uint8)
    return ov.Model([ops.reduce_mean(ops.convert(pixels, "f32"), [1, 2], False)], [pixels], "fixed")


@pytest.mark.parametrize(
    ("model", "tamper", "message"),
    [
        (tiny_model, truncated, "no usable OpenVINO model"),
        (
            lambda: tiny_model(height=HEIGHT + 1),
            None,
            r"takes u8 \[\?,18,19,3\], but bundle.json says u8 \[\?,17,19,3\]",
        ),
        (lambda: tiny_model(classes=4), None, "but bundle.json lists 3 classes"),
        (gray_model, None, "takes u8"),
        (float_input_model, None, "takes f32"),
        (two_outputs_model, None, "1 inputs and 2 outputs"),
        (fixed_batch_model, None, "takes u8"),
    ],
)
def test_a_copy_that_is_not_what_the_manifest_says_is_refused(tmp_path, model, tamper, message):
    bundle = write_bundle(tmp_path, model=model, tamper=tamper)
    with pytest.raises(BundleError, match=message) as caught:
        OpenVinoEngine(bundle, EngineConfig(), "test")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["model.xml", "model.bin"])
def test_what_is_copied_over_a_verified_bundle_never_runs(tmp_path, name):
    """Between the check and the start of its engine: a good network, but not the one that was hashed."""
    bundle = write_bundle(tmp_path / "meant")
    write_bundle(tmp_path / "other", model=lambda: tiny_model(classes=4))
    shutil.copy(tmp_path / "other/openvino" / name, tmp_path / "meant/openvino")
    with pytest.raises(BundleError, match=rf"{name}: SHA-256 is"):
        make_engine(bundle, EngineConfig(device="cpu"))


def test_what_is_copied_over_it_once_it_was_read_does_not_run_either(tmp_path, monkeypatch):
    """The engine is made of the very bytes that were hashed, whatever is on disk a moment later."""
    bundle = write_bundle(tmp_path / "meant")
    write_bundle(tmp_path / "other", model=lambda: tiny_model(classes=4))
    check = model_bundle._check_hash

    def then_copied(root: Path, name: str, *hashes: str) -> None:
        check(root, name, *hashes)
        shutil.copy(tmp_path / "other" / name, root / name)

    monkeypatch.setattr(model_bundle, "_check_hash", then_copied)
    make_engine(bundle, EngineConfig(device="cpu")).close()


ALL: tuple[Copy, ...] = ("openvino", "openvino-int8")


@pytest.mark.parametrize(
    ("asked", "copies", "native", "copy", "hint", "name"),
    [
        ("auto", ALL, "bf16", "openvino-int8", "bf16", "int8"),
        ("auto", ALL, "f32", "openvino-int8", "f32", "int8"),
        ("auto", ("openvino",), "bf16", "openvino", "bf16", "bf16"),
        ("auto", ("openvino",), "f32", "openvino", "f32", "f32"),
        ("int8", ALL, "bf16", "openvino-int8", "bf16", "int8"),
        ("bf16", ALL, "bf16", "openvino", "bf16", "bf16"),
        ("f32", ALL, "bf16", "openvino", "f32", "f32"),
    ],
)
def test_precision_follows_what_is_asked_carried_and_native(tmp_path, asked, copies, native, copy, hint, name):
    chosen = choose_precision(EngineConfig(precision=asked), write_bundle(tmp_path, copies), ["BF16", "FP32"], native)
    assert (chosen.copy, chosen.hint, chosen.name) == (copy, hint, name)


@pytest.mark.parametrize(("asked", "copy", "name"), [("auto", "openvino", "f32"), ("int8", "openvino-int8", "int8")])
def test_a_copy_that_only_passed_its_gate_with_float32_runs_so(tmp_path, asked, copy, name):
    """Whatever the processor likes better; and bf16 cannot be had by asking for it."""
    bundle = write_bundle(tmp_path, ALL if asked == "int8" else ("openvino",))
    bundle = replace(bundle, manifest=bundle.manifest.model_copy(update={"float32": ("openvino", "openvino-int8")}))
    chosen = choose_precision(EngineConfig(precision=asked), bundle, ["BF16", "FP32"], "bf16")
    assert (chosen.copy, chosen.hint, chosen.name) == (copy, "f32", name)
    with pytest.raises(ConfigError, match=r"engine\.precision: bf16: did not pass this bundle's gate"):
        choose_precision(EngineConfig(precision="bf16"), bundle, ["BF16", "FP32"], "bf16")


@pytest.mark.parametrize(("asked", "message"), [("fp16", "CUDA"), ("bf16", "no bf16")])
def test_a_precision_that_the_processor_cannot_do_names_the_key(tmp_path, asked, message):
    with pytest.raises(ConfigError, match=rf"engine\.precision: {asked}.*{message}"):
        choose_precision(EngineConfig(precision=asked), write_bundle(tmp_path), ["FP32"], "f32")


@pytest.mark.parametrize(
    ("asked", "copies", "target"),
    [("int8", ("openvino",), "openvino-int8"), ("f32", ("openvino-int8",), "openvino"), ("auto", (), "openvino")],
)
def test_a_missing_copy_names_the_command_that_makes_it(tmp_path, asked, copies, target):
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"another copy")
    bundle = write_bundle(tmp_path, copies)
    with pytest.raises(BundleError, match=rf"has no {target} copy; `inspectd train` writes one"):
        make_engine(bundle, EngineConfig(device="cpu", precision=asked))


def test_auto_without_a_gpu_takes_the_cpu_and_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(select, "_NVIDIA_SIGNS", (tmp_path / "no-such-device",))
    engine = make_engine(write_bundle(tmp_path), EngineConfig())
    assert (engine.info.name, engine.info.device) == ("openvino", "cpu")
    assert "no NVIDIA driver" in engine.info.why
    assert "bundle carries no INT8" in engine.info.why
    engine.close()


def test_cuda_without_a_gpu_is_refused_by_the_key(tmp_path, monkeypatch):
    monkeypatch.setattr(select, "_NVIDIA_SIGNS", (tmp_path / "no-such-device",))
    with pytest.raises(ConfigError, match=r"engine\.device: cuda:1: .*no NVIDIA driver"):
        make_engine(write_bundle(tmp_path), EngineConfig(device="cuda:1"))


def test_cuda_without_torch_names_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(select, "_NVIDIA_SIGNS", (tmp_path,))
    monkeypatch.setitem(sys.modules, "torch", None)
    bundle = write_bundle(tmp_path)
    with pytest.raises(ConfigError, match=r"engine\.device: cuda: .*pip install inspectd\[cuda\]"):
        make_engine(bundle, EngineConfig(device="cuda"))
    engine = make_engine(bundle, EngineConfig(device="auto"))
    assert "torch is not installed" in engine.info.why
    engine.close()


def test_the_cpu_path_imports_neither_torch_nor_telemetry(tmp_path):
    """A fresh process chooses, builds and runs an engine; nothing reports home, and torch stays out."""
    bundle = write_bundle(tmp_path / "bundle", ALL)
    script = """
import json, sys
from dataclasses import replace
from pathlib import Path
import numpy as np
from inspectd.config import EngineConfig
from inspectd.engine.base import Slot
from inspectd.engine.select import make_engine
from inspectd.model.bundle import load_bundle
engine = make_engine(load_bundle(Path(sys.argv[1])), EngineConfig(device="cpu"))
memory = engine.allocate(2)
memory[:] = 51
engine.warm_up()
engine.submit([Slot(1, memory[1])], lambda slots: None)
logits = engine.collect()
engine.close()
unwanted = ("torch", "nncf", "openvino_telemetry")
bad = [name for name, module in sys.modules.items() if module and name.split(".")[0] in unwanted]
print(json.dumps({"bad": bad, "logits": logits.tolist()}))
"""
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", script, str(bundle.path)],
        capture_output=True,
        text=True,
        timeout=60,
        env={"HOME": str(home), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["bad"] == []
    np.testing.assert_allclose(result["logits"], [[0.2, 0.2, 0.2]], atol=0.005)
    assert list(home.iterdir()) == []
