"""A real ResNet18 that knows the four colours of colour_bundle by heart: for the GPU, which needs torch's weights.

Its trunk is random; its head is the least-squares fit of those features to the four classes. Without any training it
tells the colours apart by a wide margin, in half precision too.
"""

import numpy as np
import torch
from colour_bundle import CLASSES, COLOURS

from inspectd.model.bundle import WEIGHTS, Bundle, write_manifest
from inspectd.model.export import normalise, settle_batch_norm
from inspectd.model.manifest import Manifest
from inspectd.model.network import build_network, save_weights
from inspectd.model.preprocess import PreprocessSpec

LOGIT = 12.0  # of the right class; the others get 0


def colour_network(path, size=64, seed=0) -> Bundle:
    """Write the bundle (weights for torch alone); another seed is another network with the same answers."""
    spec = PreprocessSpec(width=size, height=size)
    manifest = Manifest(
        format_version=1, architecture="resnet18", classes=CLASSES, preprocess=spec, files={}, created_by=f"seed {seed}"
    )
    rng = np.random.default_rng(seed)
    kinds = [k % len(COLOURS) for k in range(16 * len(COLOURS))]
    flat = np.array([list(COLOURS.values())[kind] for kind in kinds])
    pixels = flat[:, None, None] + rng.integers(-8, 9, (len(kinds), size, size, 3))
    inputs = normalise(torch.from_numpy(pixels.clip(0, 255).astype(np.uint8)), spec)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        network = build_network(manifest).eval()
        settle_batch_norm(network, [inputs])
        head, network.fc = network.fc, torch.nn.Identity()
        features = network(inputs).double()
        network.fc = head
        wanted = torch.nn.functional.one_hot(torch.tensor(kinds), len(COLOURS)).double() * LOGIT
        with_bias = torch.cat([features, torch.ones(len(kinds), 1)], 1)
        ridge = torch.eye(with_bias.shape[1], dtype=torch.float64)
        fit = torch.linalg.solve(with_bias.T @ with_bias + ridge, with_bias.T @ wanted)
        head.weight.copy_(fit[:-1].T)
        head.bias.copy_(fit[-1])
    path.mkdir(parents=True)
    save_weights(network, path / WEIGHTS)
    return write_manifest(path, manifest)
