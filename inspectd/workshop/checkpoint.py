"""An unfinished run on disk: its last epoch and its best weights, whole at any moment, never a pickle.

    BUNDLE.run/last.safetensors    everything that the next epoch depends on
    BUNDLE.run/best.safetensors    the weights that scored best so far

Each file is written beside its place, flushed to the disk and renamed.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from inspectd.errors import DataError

_FORMAT = "inspectd.checkpoint/1"
_LAST, _BEST = "last.safetensors", "best.safetensors"
_HELP = "start over with --restart"


@dataclass(frozen=True, slots=True)
class Position:
    """Where a run stands: epochs done, the best of them and its score, and the time it has taken."""

    epochs_done: int = 0
    steps_done: int = 0
    elapsed_s: float = 0.0
    best_epoch: int = 0  # counted from 1; 0 is none yet
    best_key: tuple[float, ...] = ()
    averaged: int = 0  # updates of the averaged weights
    micro_batch: int = 0  # what was left of the batch where memory ran out; 0 is all of it
    stopped: bool = False  # early, and not to be continued
    scaler: dict[str, float] | None = None

    @classmethod
    def from_json(cls, text: str) -> Position:
        """As `asdict` and `json` wrote it.

        Raises:
            ValueError: it is none.
        """
        return TypeAdapter(cls).validate_json(text)


class RunFolder:
    """The folder of an unfinished run. `identity` says which data and options it belongs to."""

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path = path
        self._identity = json.loads(json.dumps(identity))  # tuples become lists, as they come back from the file

    @classmethod
    def beside(cls, bundle: Path, identity: dict[str, Any]) -> RunFolder:
        return cls(bundle.with_name(f"{bundle.name}.run"), identity)

    @property
    def exists(self) -> bool:
        return (self.path / _LAST).exists()

    def load(self) -> tuple[Position, dict[str, Tensor]]:
        """The last epoch's position and tensors.

        Raises:
            DataError: damaged, of another version, or of another run.
        """
        metadata, tensors = _read(self.path / _LAST)
        try:
            position = Position.from_json(metadata["position"])
            theirs = dict(json.loads(metadata["identity"]))
        except (KeyError, TypeError, ValueError, RecursionError):
            raise DataError(f"{self.path / _LAST}: is damaged: nobody can tell where it stood; {_HELP}") from None
        if different := [key for key in self._identity if theirs.get(key) != self._identity[key]]:
            key = different[0]
            raise DataError(
                f"{self.path}: that run had {key} {_short(theirs.get(key))}, now it is {_short(self._identity[key])}; "
                "resume it with what it was started with, or start over with --restart"
            )
        return position, tensors

    def load_best(self) -> dict[str, Tensor]:
        """The best weights, by the network's own names."""
        return _read(self.path / _BEST)[1]

    def save_best(self, tensors: dict[str, Tensor]) -> None:
        """Keep the best weights. Always before the `save` that speaks of them.

        Raises:
            DataError: the disk is full, or cannot be written.
        """
        self._write(_BEST, tensors, {})

    def save(self, position: Position, tensors: dict[str, Tensor]) -> None:
        """Keep an epoch's end.

        Raises:
            DataError: the disk is full, or cannot be written; what was saved before is still there.
        """
        metadata = {"position": json.dumps(asdict(position)), "identity": json.dumps(self._identity)}
        self._write(_LAST, tensors, metadata)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def _write(self, name: str, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        final, temporary = self.path / name, self.path / f".{name}.new"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            whole = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
            save_file(whole, temporary, {"format": _FORMAT, **metadata})
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(final)
            folder = os.open(self.path, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except (OSError, SafetensorError) as err:
            temporary.unlink(missing_ok=True)
            reason = getattr(err, "strerror", None) or " ".join(str(err).split())[:200]
            raise DataError(
                f"{final}: cannot be written: {reason}; make room and go on with --resume"
                if self.exists
                else f"{final}: cannot be written: {reason}"
            ) from err


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as err:
        raise DataError(f"{path}: cannot be read: {' '.join(str(err).split())[:200]}; {_HELP}") from err
    if metadata.get("format") != _FORMAT:
        raise DataError(f"{path}: is no checkpoint of this version; {_HELP}")
    return metadata, tensors


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:39]}…"
