"""What the soak's cameras show, and the model that judges it: real work, and yet the truth of every picture is known.

The model is a whole ResNet18 in INT8, whose random logits are added a millionth each to those of a head that goes by
the mean colour: as much to compute as on a line, and never another answer. What a picture shows follows from its
stream time alone (`Scene`).
"""

import argparse
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))  # the kit of the tests next door

from colour_bundle import CLASSES, COLOURS, VERDICTS
from media import write_clip

from inspectd.model.bundle import Bundle, write_manifest
from inspectd.model.manifest import Manifest

KINDS = list(COLOURS)
SIDE = 224
_TEXTURE = 8
"""How far a picture's pixels lie from the colour of its kind, so that neither codec nor sensor is a flat one."""


@dataclass(frozen=True)
class Scene:
    """One kind for each slot of stream time, over and over; `salt` tells cameras apart."""

    slot_s: float
    slots: int
    salt: int
    margin_s: float
    """Stamps are rounded on their way: a picture belongs to its slot from so much before it begins."""

    @property
    def lap_s(self) -> float:
        return self.slot_s * self.slots

    def kind(self, pts: float) -> str:
        """What is in view at that stream time, seconds."""
        slot = int((pts + self.margin_s) / self.slot_s) % self.slots
        return KINDS[(slot * 7919 + slot // 3 + self.salt * 31) % len(KINDS)]

    def write(self, path: Path, fps: float, size: tuple[int, int], codec: str = "libx264", seed: int = 0) -> Path:
        """One lap as a clip."""
        texture = np.random.default_rng(seed).integers(-_TEXTURE, _TEXTURE + 1, (size[1], size[0] + 64, 1))

        def picture(index: int):
            shift = index * 7 % 64
            colour = np.array(COLOURS[self.kind(index / fps)]) + texture[:, shift : shift + size[0]]
            return colour.clip(0, 255).astype(np.uint8)

        count = round(self.lap_s * fps)
        return write_clip(path, count, size=size, fps=fps, gop=round(fps), codec=codec, picture=picture, barcode=False)


def expected(kind: str) -> tuple[str, str]:
    """The verdict and the label that a picture of that kind deserves."""
    return VERDICTS[kind], kind


def working_bundle(path: Path, network: Path, created_by: str) -> Bundle:
    """Write a bundle around an INT8 network `network` (an OpenVINO model of as many classes) with the colour head."""
    import openvino as ov
    from openvino import opset13 as ops

    from inspectd.model.preprocess import PreprocessSpec

    model = ov.Core().read_model(network)
    pixels = model.get_parameters()[0]
    logits = model.get_results()[0].input_value(0)
    # tanh keeps whatever it says within a millionth, and cannot be folded away as a product with 0 could.
    whisper = ops.multiply(ops.tanh(logits), ops.constant(np.float32(1e-6)))
    mean = ops.reduce_mean(ops.convert(pixels, np.float32), ops.constant([1, 2]), keep_dims=False)  # [B, 3]
    targets = np.array([COLOURS[c.name] for c in CLASSES], np.float32)
    head = ops.matmul(mean, ops.constant(2 * targets.T / 1000), transpose_a=False, transpose_b=False)
    head = ops.add(head, ops.constant(-(targets**2).sum(1) / 1000))  # colour_bundle.py has the derivation
    both = ov.Model([ops.result(ops.add(head, whisper), name="logits")], [pixels], "soak")
    (path / "openvino-int8").mkdir(parents=True)
    ov.save_model(both, path / "openvino-int8" / "model.xml", compress_to_fp16=False)
    manifest = Manifest(
        format_version=1,
        architecture="resnet18",
        created_by=created_by,
        classes=CLASSES,
        preprocess=PreprocessSpec(width=SIDE, height=SIDE),
        files={},
    )
    return write_manifest(path, manifest)


def golden_pictures(folder: Path, size: tuple[int, int]) -> None:
    """One picture of each kind, `good.png` and so on."""
    import cv2

    for kind, colour in COLOURS.items():
        cv2.imwrite(str(folder / f"{kind}.png"), np.full((size[1], size[0], 3), colour[::-1], np.uint8))


def main() -> None:
    """`works.py FOLDER`: both bundles. A process of its own: torch and nncf need not stay for two hours."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder

    from inspectd.model.export import random_bundle

    with tempfile.TemporaryDirectory() as scratch:
        network = random_bundle(Path(scratch, "random"), [c.name for c in CLASSES], SIDE)
        for name in ("bundle", "bundle-lid"):
            shutil.rmtree(folder / name, ignore_errors=True)
            working_bundle(folder / name, network.copy_path("openvino-int8"), f"the soak's {name}")


if __name__ == "__main__":
    main()
