"""What an INT8 copy says on a processor without VNNI: OpenVINO in a process that must not use those instructions."""

import os
import subprocess
import sys

import numpy as np

from inspectd.model.runtime import import_openvino, openvino_core

_ASK = """
import sys
import numpy as np
import openvino as ov
compiled = ov.Core().compile_model(sys.argv[1], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
np.save(sys.argv[3], np.concatenate([compiled(picture[np.newaxis])[0].copy() for picture in np.load(sys.argv[2])]))
"""


def answers(model, pixels, folder, instructions):
    """float32 [N, ...] for uint8 [N, height, width, 3]; `instructions` is the most that may be used, None all."""
    given, got = folder / "pixels.npy", folder / f"{instructions}.npy"
    np.save(given, pixels)
    environ = os.environ | ({"ONEDNN_MAX_CPU_ISA": instructions} if instructions else {})
    subprocess.run([sys.executable, "-c", _ASK, str(model), str(given), str(got)], env=environ, check=True, timeout=60)
    return np.load(got)


def widest_weight(model):
    """The largest of a copy's INT8 weights, without its sign; 0 where nothing is quantised."""
    i8 = import_openvino().Type.i8
    constants = [op for op in openvino_core().read_model(model).get_ordered_ops() if op.get_type_name() == "Constant"]
    widths = [np.abs(op.data.astype(int)).max() for op in constants if op.get_element_type() == i8]
    return max(widths, default=0)
