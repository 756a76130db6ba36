"""Bundles that are bound to a hash: which mention of which bundle is bound to what."""

from __future__ import annotations

import os.path
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from inspectd.config.sections import CameraConfig, ModelConfig, RecipeConfig, RoiConfig

if TYPE_CHECKING:
    from inspectd.config.settings import Settings

_Roi = TypeVar("_Roi", bound=RoiConfig)


def named_bundles(
    model: ModelConfig, regions: Iterable[CameraConfig | RecipeConfig]
) -> Iterator[tuple[Path, str | None]]:
    """Every mention of a bundle, with the hash that it is bound to there."""
    yield model.bundle, model.sha256
    for each in regions:
        for roi in each.rois:
            if roi.model is not None:
                yield roi.model, roi.model_sha256


def bind_everywhere(settings: Settings) -> Settings:
    """Whoever binds a bundle at one mention binds it at all of them: also under the recipes that do not repeat it.

    Raises:
        ValueError: one is bound to two hashes.
    """
    recipes = settings.recipes
    mentions = [*named_bundles(settings.model, (*settings.cameras, *recipes.values()))]
    mentions += [(recipe.bundle, recipe.sha256) for recipe in recipes.values() if recipe.bundle is not None]
    bound: dict[str, str] = {}
    for bundle, sha256 in mentions:
        if sha256 is not None and (first := bound.setdefault(os.path.normpath(bundle), sha256)) != sha256:
            raise ValueError(f"{bundle}: is bound to two hashes, {first} and {sha256}")

    def bound_to(bundle: Path | None) -> str | None:
        """`one` and `../line/one` are one folder."""
        return None if bundle is None else bound.get(os.path.normpath(bundle))

    def regions(rois: Iterable[_Roi]) -> tuple[_Roi, ...]:
        return tuple(roi.model_copy(update={"model_sha256": bound_to(roi.model)}) for roi in rois)

    def of_recipe(recipe: RecipeConfig) -> RecipeConfig:
        return recipe.model_copy(update={"sha256": bound_to(recipe.bundle), "rois": regions(recipe.rois)})

    return settings.model_copy(
        update={
            "model": settings.model.model_copy(update={"sha256": bound_to(settings.model.bundle)}),
            "cameras": tuple(each.model_copy(update={"rois": regions(each.rois)}) for each in settings.cameras),
            "recipes": {name: of_recipe(recipe) for name, recipe in recipes.items()},
        }
    )
