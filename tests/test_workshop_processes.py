"""Training in processes of its own: killed at random moments, and shared by two."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
from test_workshop_train import write_pictures
from trained_apart import start_training

from inspectd.model.bundle import load_bundle
from inspectd.workshop.options import TrainOptions


def killed_until_done(data, bundle, options, kills=0, within_s=0.0, rng=None):
    """Train in processes of their own, SIGKILLed `kills` times at random moments; how often it was mid-run."""
    errors = bundle.with_name(f".{bundle.name}.errors")
    in_training = 0
    for attempt in range(kills):
        process = start_training(data, bundle, errors, options)
        # From the moment when there is something to lose; every other time already a little before.
        awaited = bundle.with_name(f"{bundle.name}.run") / ("" if attempt % 2 else "last.safetensors")
        deadline = time.monotonic() + 60
        while not awaited.exists() and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.join(rng.uniform(0, within_s))
        in_training += process.is_alive()
        process.kill()
        process.join()
        if bundle.exists():
            load_bundle(bundle)
    process = start_training(data, bundle, errors, options)
    process.join(100)
    assert process.exitcode == 0, errors.read_text() if errors.exists() else process.exitcode
    return in_training


@pytest.mark.soak
@pytest.mark.parametrize(("kills", "within_s", "epochs"), [(1, 1.0, 4), (20, 4.0, 8)])
def test_training_killed_at_random_moments_ends_with_the_same_weights(tmp_path, kills, within_s, epochs):
    """SIGKILL while it reads, trains, saves or exports: every checkpoint loads, and nothing is lost or changed."""
    options = TrainOptions(size=32, epochs=epochs, batch_size=8, threads=1, dropout=0.2, int8=False)
    data = write_pictures(tmp_path / "data", {"good": 24, "stain": 24})
    assert killed_until_done(data, tmp_path / "whole", options) == 0
    rng = np.random.default_rng(kills)
    hit = killed_until_done(data, tmp_path / "broken", options, kills, within_s, rng)
    assert hit >= max(1, kills // 2)
    whole, broken = (load_bundle(tmp_path / name).manifest.files["model.safetensors"] for name in ("whole", "broken"))
    assert whole == broken
    left = sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("."))
    assert left == ["broken", "data", "whole"]


@pytest.mark.soak
def test_two_processes_train_one_network(tmp_path):
    """torchrun with gloo: the batch is shared, both end with the same weights, the first writes the bundle."""
    data = write_pictures(tmp_path / "data", {"good": 60, "stain": 60, "empty": 60})
    script = tmp_path / "one_of_two.py"
    script.write_text(
        "import os, sys, torch\nfrom pathlib import Path\nimport inspectd.workshop.training as frame\n"
        "import inspectd.workshop.train as t\n"
        "from inspectd.workshop.options import TrainOptions\n"
        "fit = frame.fit\n"
        "def keep(network, *args, **kw):\n"
        "    position = fit(network, *args, **kw)\n"
        "    Path(sys.argv[3] + os.environ['RANK']).write_text(f'{position.steps_done}')\n"
        "    return position\n"
        "frame.fit = keep\n"
        "options = TrainOptions(size=32, epochs=3, batch_size=16, threads=1, int8=False)\n"
        "made = t.train(Path(sys.argv[1]), Path(sys.argv[2]), options)\n"
        "assert (made is not None) == (os.environ['RANK'] == '0')\n"
    )
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script),
            str(data), str(tmp_path / "bundle"), str(tmp_path / "steps"),
        ],
        capture_output=True, text=True, timeout=110, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    made = load_bundle(tmp_path / "bundle")
    assert made.manifest.metrics["eager"]["accuracy"] >= 0.9
    steps = 3 * (sum(made.manifest.training["pictures"]["train"].values()) // 16)
    assert [(tmp_path / f"steps{rank}").read_text() for rank in (0, 1)] == [str(steps), str(steps)]
