"""The training loop: steps, schedule, averaged weights, early stopping, checkpoints. It knows no task.

    for each epoch: [open layer groups] -> steps -> judge the averaged weights -> keep best -> checkpoint

All that is random comes from (seed, epoch, step, process), so a run that was killed and resumed takes the
very steps of one that was not; only a time budget, which shortens the schedule by the clock, breaks that.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace

import structlog
import torch
from torch import Tensor, nn

from inspectd.errors import DataError, UsageError
from inspectd.progress import Tell
from inspectd.workshop.averaging import Averaged, state_of
from inspectd.workshop.checkpoint import Position, RunFolder
from inspectd.workshop.distributed import World
from inspectd.workshop.numerics import generator_for, half_precision, is_out_of_memory, seed_everything
from inspectd.workshop.optimiser import LAYER_GROUPS, Optimiser, group_of, open_groups, schedule
from inspectd.workshop.options import TrainOptions
from inspectd.workshop.task import Score, Task

log = structlog.get_logger(__name__)


EpochRow = Callable[[dict[str, float]], None]
"""Told the figures of each epoch, in the order of the table's columns."""


def fit(
    network: nn.Module,
    task: Task,
    options: TrainOptions,
    *,
    world: World,
    device: torch.device,
    run: RunFolder | None = None,
    budget_s: float | None = None,
    tell: Tell,
    on_epoch: EpochRow | None = None,
) -> Position:
    """Train `network` in place; at the end it holds the best averaged weights, on `device`, in eval mode.

    Args:
        network: on `device`, channels last.
        run: where checkpoints go; what lies there is continued. None keeps none.
        budget_s: the schedule ends after so many seconds, over all that was resumed.

    Raises:
        DataError: the loss is no number any more, or a checkpoint cannot be written or read.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        return _Fit(network, task, options, world, device, run, budget_s, tell, on_epoch).run()


class _Fit:
    def __init__(
        self,
        network: nn.Module,
        task: Task,
        options: TrainOptions,
        world: World,
        device: torch.device,
        run: RunFolder | None,
        budget_s: float | None,
        tell: Tell,
        on_epoch: EpochRow | None,
    ) -> None:
        self._network, self._task, self._options = network, task, options
        self._world, self._device, self._run_folder = world, device, run
        self._budget_s, self._tell, self._on_epoch = budget_s, tell, on_epoch
        self._half = half_precision(device, options)
        self._optimiser = Optimiser(network, options)
        self._scaler = torch.amp.GradScaler(device.type, enabled=self._half == torch.float16)
        self._averaged = Averaged(network, options.ema_decay)
        self._batch_size = min(options.batch_size, task.pictures)
        self._micro = -(-self._batch_size // (world.size * options.accumulate))
        self._steps_per_epoch = max(1, task.pictures // self._batch_size)
        self._position = Position()
        self._best: dict[str, Tensor] | None = None  # where there is no run folder
        self._open: tuple[str, ...] = ()
        self._wrapped = network
        self._message = ""

    def run(self) -> Position:
        self._resume()
        self._started = time.monotonic() - self._position.elapsed_s
        for epoch in range(self._position.epochs_done, self._options.epochs):
            if self._position.stopped or self._done() >= 1:
                break
            self._train(epoch)
            score = self._judge()
            self._keep(epoch, score)
        self._take_best()
        return self._position

    # -- one epoch --

    def _train(self, epoch: int) -> None:
        seed_everything(self._options.seed, epoch, self._world.rank)
        self._open_layers(self._done())
        started, losses, pictures, rate = time.monotonic(), [], 0, 0.0
        for index, generator in self._batches(epoch):
            done = self._done()
            if done >= 1:
                break
            rate = self._optimiser.set_rate(schedule(done))
            losses.append(self._step(index, generator))
            self._averaged.update(self._network)
            pictures += len(index) * self._world.size
            self._position = replace(self._position, steps_done=self._position.steps_done + 1)
            self._report_step()
        loss = float(torch.stack(losses).mean()) if losses else math.nan  # the one place that waits for the device
        if losses and not math.isfinite(loss):
            raise DataError(f"the loss became {loss} in epoch {epoch + 1}; try a smaller --learning-rate")
        seconds = time.monotonic() - started
        self._row = {"epoch": epoch + 1, "loss": loss, "rate": rate, "pictures/s": pictures / max(seconds, 1e-9)}

    def _batches(self, epoch: int) -> Iterator[tuple[Tensor, torch.Generator]]:
        """This process's share of each whole batch, and what its augmentation draws from."""
        order = self._task.order(generator_for(self._options.seed, epoch))
        for step in range(self._steps_per_epoch):
            batch = order[step * self._batch_size : (step + 1) * self._batch_size]
            share = batch[self._world.rank :: self._world.size]
            yield share, generator_for(self._options.seed, epoch, step, self._world.rank)

    def _step(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """One step of the optimiser; in smaller parts, for good, when memory does not suffice."""
        while True:
            state = generator.get_state()
            try:
                return self._accumulate(index, generator)
            except RuntimeError as err:
                if not is_out_of_memory(err):
                    raise
                if self._world.size > 1 or self._micro <= 2:
                    raise UsageError(f"train: memory does not suffice for {self._micro} pictures at a time; "
                                     "use a smaller --size, or --accumulate for smaller parts") from err  # fmt: skip
            # Outside the handler: the exception held on to the activations.
            self._micro = -(-self._micro // 2)
            log.warning("out_of_memory", note=f"each batch of {len(index)} now goes in parts of {self._micro}")
            generator.set_state(state)
            if self._device.type == "cuda":
                torch.cuda.empty_cache()

    def _accumulate(self, index: Tensor, generator: torch.Generator) -> Tensor:
        self._optimiser.zero_grad()
        parts = index.tensor_split(-(-len(index) // self._micro))
        total = torch.zeros((), device=self._device)
        for part in parts:
            batch = self._task.batch(part, generator)
            last = part is parts[-1]
            with contextlib.nullcontext() if last or self._world.size == 1 else self._wrapped.no_sync():  # type: ignore[operator]
                with self._autocast():
                    loss = self._task.loss(self._wrapped, batch)
                loss = loss * (len(part) / len(index))
                self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        self._optimiser.step(self._scaler)
        return total

    def _open_layers(self, done: float) -> None:
        """Let the layer groups learn whose turn it is; the others keep even their running statistics."""
        groups = open_groups(done, self._options.stage_plan)
        self._network.train()
        for name, module in self._network.named_modules():
            if isinstance(module, nn.BatchNorm2d) and group_of(name) not in groups:
                module.eval()
        if groups == self._open:
            return
        self._open = groups
        for name, parameter in self._network.named_parameters():
            parameter.requires_grad_(group_of(name) in groups)
        self._wrapped = self._world.wrap(self._network, self._device)
        if len(groups) < len(LAYER_GROUPS):
            log.info("layers_open", layers=", ".join(groups))

    # -- between epochs --

    def _judge(self) -> Score:
        score = Score(())
        if self._world.main:
            judged = self._averaged.network.eval()
            with torch.no_grad(), self._autocast():
                score = self._task.judge(judged)
        return score

    def _keep(self, epoch: int, score: Score) -> None:
        """Checkpoint the epoch, its weights too where they are the best; decide whether it was the last."""
        better = self._world.main and score.key > self._position.best_key
        if better:
            weights = state_of(self._averaged.network)
            if self._run_folder is None:
                self._best = {name: tensor.clone() for name, tensor in weights.items()}
            else:
                self._run_folder.save_best(weights)
            self._position = replace(self._position, best_epoch=epoch + 1, best_key=score.key)
        waited = epoch + 1 - self._position.best_epoch
        stop = bool(self._world.agreed(float(waited >= self._options.patience_plan)))
        if stop and epoch + 1 < self._options.epochs:
            log.info("stopped_early", epoch=epoch + 1, best=self._position.best_epoch, metric=self._options.metric)
        self._position = replace(
            self._position,
            epochs_done=epoch + 1,
            elapsed_s=time.monotonic() - self._started,
            averaged=self._averaged.updates,
            micro_batch=self._micro,
            stopped=stop,
            scaler=self._scaler.state_dict() or None,
        )
        if self._world.main and self._run_folder is not None:
            self._run_folder.save(self._position, self._tensors())
        row = {**self._row, **score.columns, "best": float(better)}
        if self._on_epoch is None:
            self._message = f"epoch {epoch + 1}/{self._options.epochs} loss {self._row['loss']:.3f}"
        elif self._world.main:
            self._on_epoch(row)

    def _tensors(self) -> dict[str, Tensor]:
        parts = {
            "network": state_of(self._network),
            "averaged": state_of(self._averaged.network),
            "optimiser": self._optimiser.state(),
        }
        return {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}

    def _resume(self) -> None:
        """Continue what lies in the run folder of process 0; on other machines there is no such folder."""
        found = Position()
        tensors: dict[str, Tensor] = {}
        if self._run_folder is not None and self._world.main and self._run_folder.exists:
            found, tensors = self._run_folder.load()
        text, tensors = self._world.shared(json.dumps(asdict(found)), tensors)
        if not tensors:
            return
        try:
            self._take_up(Position.from_json(text), tensors)
        except (LookupError, RuntimeError, TypeError, ValueError) as err:
            where = "the checkpoint" if self._run_folder is None else self._run_folder.path
            raise DataError(f"{where}: is damaged: its tensors fit nothing here; start over with --restart") from err
        log.info("resumed", epochs_done=self._position.epochs_done)

    def _take_up(self, position: Position, tensors: dict[str, Tensor]) -> None:
        self._position = position
        parts: dict[str, dict[str, Tensor]] = {"network": {}, "averaged": {}, "optimiser": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition("/")
            parts[part][rest] = tensor
        self._network.load_state_dict(parts["network"])
        self._averaged.network.load_state_dict(parts["averaged"])
        self._averaged.updates = self._position.averaged
        self._optimiser.load_state(parts["optimiser"])
        self._micro = self._position.micro_batch or self._micro
        if self._position.scaler:
            self._scaler.load_state_dict(self._position.scaler)

    def _take_best(self) -> None:
        if self._world.main and self._position.best_epoch:
            best = self._best if self._run_folder is None else self._run_folder.load_best()
            assert best is not None
            self._network.load_state_dict(best)
        self._network.requires_grad_(requires_grad=True).eval()

    # -- small things --

    def _done(self) -> float:
        """How much of the schedule is over, by steps, or by time where that is scarcer. The same everywhere."""
        by_steps = self._position.steps_done / (self._options.epochs * self._steps_per_epoch)
        if self._budget_s is None:
            return by_steps
        return self._world.agreed(max(by_steps, (time.monotonic() - self._started) / self._budget_s))

    def _report_step(self) -> None:
        total = self._options.epochs * self._steps_per_epoch
        by_time = 0.0 if self._budget_s is None else (time.monotonic() - self._started) / self._budget_s
        self._tell("training", min(total, int(max(self._position.steps_done, by_time * total))), total, self._message)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, self._half, enabled=self._half is not None)
