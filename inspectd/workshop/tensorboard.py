"""The figures of each epoch, for TensorBoard."""

from __future__ import annotations

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from inspectd.errors import UsageError
from inspectd.workshop.options import TrainOptions


class TensorBoard:
    """Writes each epoch's row below `folder`; a resumed run goes on in the same curves.

    Nothing is written before the first row, so that of several processes only the one that is told of epochs writes.
    """

    def __init__(self, folder: Path, options: TrainOptions) -> None:
        self._folder, self._options = folder, options
        self._writer: SummaryWriter | None = None

    def __call__(self, row: dict[str, float]) -> None:
        """Write one epoch's figures.

        Raises:
            UsageError: the folder cannot be written.
        """
        try:
            if self._writer is None:
                self._writer = SummaryWriter(str(self._folder))
                self._writer.add_text("options", f"`{self._options}`")
            for name, value in row.items():
                if name != "epoch":
                    self._writer.add_scalar(name.replace(" ", "_"), value, int(row["epoch"]))
            self._writer.flush()
        except OSError as err:
            raise UsageError(f"--tensorboard {self._folder}: cannot be written: {err.strerror or err}") from err

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
