"""The one preprocessing: what a network sees of a picture, for training, evaluation and the line alike."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class PreprocessSpec(BaseModel):
    """How a region of interest becomes network input. Stored in the bundle; there is no second place.

    The host writes uint8 RGB [height, width, 3]; `mean` and `std` (of values in 0..1, per RGB channel)
    are applied inside the engine, on the device.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = Field(224, ge=16, le=2048)
    height: int = Field(224, ge=16, le=2048)
    resize: Literal["stretch"] = "stretch"
    interpolation: Literal["area"] = "area"
    channels: Literal["rgb"] = "rgb"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
