"""The figures of each epoch, for TensorBoard."""

from __future__ import annotations

from pathlib import Path

from inspectd.errors import UsageError
from inspectd.workshop.options import TrainOptions


class TensorBoard:
    """Writes each epoch's row below `folder`; a resumed run goes on in the same curves.

    Raises:
        UsageError: the folder cannot be written.
    """

    def __init__(self, folder: Path, options: TrainOptions) -> None:
        from torch.utils.tensorboard import SummaryWriter

        try:
            self._writer = SummaryWriter(str(folder))
        except OSError as err:
            raise UsageError(f"--tensorboard {folder}: cannot be written: {err.strerror or err}") from err
        self._writer.add_text("options", f"`{options}`")

    def __call__(self, row: dict[str, float]) -> None:
        epoch = int(row["epoch"])
        for name, value in row.items():
            if name != "epoch":
                self._writer.add_scalar(name.replace(" ", "_"), value, epoch)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
