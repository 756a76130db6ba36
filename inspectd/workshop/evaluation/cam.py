"""Class-activation maps: where in the picture the network saw what speaks for a class.

A ResNet ends in a global average over places and one linear layer, so that a logit is exactly the mean
over places of w·f(place), plus a bias (Zhou et al. 2016, "Learning Deep Features for Discriminative
Localization"). Nothing is approximated.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from inspectd.frame import U8
from inspectd.model.export import normalise
from inspectd.model.preprocess import PreprocessSpec

F32 = npt.NDArray[np.float32]

_HOT, _COOL = (255, 96, 0), (255, 236, 110)  # RGB of the strongest and of the least evidence shown
_OPACITY = 0.62


@torch.no_grad()
def class_activation(network: nn.Module, pixels: U8, spec: PreprocessSpec) -> F32:
    """Evidence for every class at every place: uint8 [N, H, W, 3] -> float32 [N, classes, h, w].

    The mean over (h, w) plus the bias of the last layer is the logit. `network`: torchvision's ResNet.
    """
    network.eval()
    seen: list[Tensor] = []
    hook = network.get_submodule("avgpool").register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    try:
        network(normalise(torch.from_numpy(pixels), spec))
    finally:
        hook.remove()
    weights = network.get_parameter("fc.weight")  # [classes, channels]
    maps: F32 = torch.einsum("nchw,kc->nkhw", seen[0], weights).float().numpy()
    return maps


def overlay(pixels: U8, evidence: F32, strongest: float) -> U8:
    """The picture, greyed, with the evidence above 0 as heat; `strongest` gets the full colour.

    Args:
        pixels: uint8 RGB [H, W, 3].
        evidence: float32 [h, w], stretched over the picture.
        strongest: the same for maps that are to be compared.
    """
    height, width = pixels.shape[:2]
    grown = cv2.resize(evidence, (width, height), interpolation=cv2.INTER_CUBIC)
    heat = np.clip(grown / max(strongest, 1e-9), 0, 1)[:, :, np.newaxis]
    gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[:, :, np.newaxis].astype(np.float32)
    colour = np.array(_COOL) + heat * (np.array(_HOT) - np.array(_COOL))
    opacity = _OPACITY * np.sqrt(heat)
    mixed = gray * (1 - opacity) + colour * opacity
    painted: U8 = np.rint(mixed).clip(0, 255).astype(np.uint8)
    return painted
