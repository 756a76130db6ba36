"""An unfinished run on disk: its last epoch and its best weights, whole at any moment, never a pickle.

    BUNDLE.run/last.safetensors    everything that the next epoch depends on
    BUNDLE.run/best.safetensors    the weights that scored best so far

Each file is written beside its place, flushed to the disk and renamed. One training at a time has the folder.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from inspectd.errors import DataError, UsageError
from inspectd.workshop.place import flush

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

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep every other training off, by a lock on a file beside the folder, which itself comes and goes.

        Raises:
            DataError: the lock cannot be written.
            UsageError: another training has it.
        """
        name = self.path.with_name(f".{self.path.name}.lock")
        descriptor = self._lock(name)
        try:
            yield
        finally:
            name.unlink(missing_ok=True)
            os.close(descriptor)

    def check(self) -> None:
        """Refuse what lies here and cannot be continued, before anything depends on it.

        Raises:
            DataError: damaged, of another version, or of another run.
        """
        with _reading(self.path / _LAST) as last:
            position = self._position(last)
        if position.best_epoch:
            with _reading(self.path / _BEST) as best:
                self._refuse_others(best, _BEST)

    def load(self) -> tuple[Position, dict[str, Tensor]]:
        """The last epoch's position and tensors.

        Raises:
            DataError: damaged, of another version, or of another run.
        """
        with _reading(self.path / _LAST) as last:
            return self._position(last), _tensors(last)

    def load_best(self) -> dict[str, Tensor]:
        """The best weights, by the network's own names.

        Raises:
            DataError: damaged, of another version, or of another run.
        """
        with _reading(self.path / _BEST) as best:
            self._refuse_others(best, _BEST)
            return _tensors(best)

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
        self._write(_LAST, tensors, {"position": json.dumps(asdict(position))})

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def _lock(self, name: Path) -> int:
        """The locked file, as a descriptor."""
        try:
            name.parent.mkdir(parents=True, exist_ok=True)
            while True:
                descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if name.exists() and os.path.samestat(os.fstat(descriptor), name.stat()):
                        return descriptor
                except BaseException:
                    os.close(descriptor)
                    raise
                os.close(descriptor)  # who had it removed it just now
        except BlockingIOError:
            raise UsageError(f"{self.path}: another training is at work; wait for it, or give another -o") from None
        except OSError as err:
            raise DataError(f"{name}: cannot be locked: {err.strerror}; give another -o") from err

    def _position(self, last: Any) -> Position:
        try:
            position = Position.from_json(last.metadata()["position"])
        except (KeyError, ValueError, RecursionError):
            raise DataError(f"{self.path / _LAST}: is damaged: nobody can tell where it stood; {_HELP}") from None
        self._refuse_others(last, _LAST)
        return position

    def _refuse_others(self, file: Any, name: str) -> None:
        try:
            theirs = dict(json.loads(file.metadata()["identity"]))
        except (KeyError, TypeError, ValueError, RecursionError):
            raise DataError(f"{self.path / name}: is damaged: nobody can tell whose it is; {_HELP}") from None
        if different := [key for key in self._identity if theirs.get(key) != self._identity[key]]:
            key = different[0]
            raise DataError(
                f"{self.path}: that run had {key} {_short(theirs.get(key))}, now it is {_short(self._identity[key])}; "
                "resume it with what it was started with, or start over with --restart"
            )

    def _write(self, name: str, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        final, temporary = self.path / name, self.path / f".{name}.new"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            whole = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
            save_file(whole, temporary, {"format": _FORMAT, "identity": json.dumps(self._identity), **metadata})
            flush(temporary)
            temporary.replace(final)
            flush(self.path)
        except (OSError, SafetensorError) as err:
            temporary.unlink(missing_ok=True)
            reason = getattr(err, "strerror", None) or " ".join(str(err).split())[:200]
            raise DataError(
                f"{final}: cannot be written: {reason}; make room and go on with --resume"
                if self.exists
                else f"{final}: cannot be written: {reason}"
            ) from err


@contextmanager
def _reading(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("format") != _FORMAT:
                raise DataError(f"{path}: is no checkpoint of this version; {_HELP}")
            yield file
    except (OSError, SafetensorError) as err:
        raise DataError(f"{path}: cannot be read: {' '.join(str(err).split())[:200]}; {_HELP}") from err


def _tensors(file: Any) -> dict[str, Tensor]:
    return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:39]}…"
