"""What every training has around it, whatever is learned: processes, an unfinished run, the fit, a bundle in place."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import structlog
import torch
from torch import nn

from inspectd.errors import UsageError
from inspectd.model.bundle import Bundle, load_bundle
from inspectd.model.export import settle_batch_norm
from inspectd.progress import Tell
from inspectd.workshop.checkpoint import RunFolder
from inspectd.workshop.distributed import World, joined_world
from inspectd.workshop.loop import EpochRow, fit
from inspectd.workshop.numerics import half_precision
from inspectd.workshop.options import TrainOptions
from inspectd.workshop.place import refuse_lesser, refuse_other_things, replacing
from inspectd.workshop.task import Score, Task

log = structlog.get_logger(__name__)

_ONE_VALUE_SIDE = 32  # of the input, up to which a ResNet's last features are one value per picture
_FINISH_SHARE = 0.25  # of a time budget, at most, kept for quantising and judging


class Piece(Protocol):
    """What the steps of one training share."""

    @property
    def options(self) -> TrainOptions: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def world(self) -> World: ...
    @property
    def fingerprint(self) -> str:
        """Of the pictures."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """This run of the command: where its checkpoints lie, since when it runs, and who is told."""

    run: RunFolder
    started: float  # monotonic seconds
    tell: Tell
    on_epoch: EpochRow | None


P = TypeVar("P", bound=Piece)
N = TypeVar("N", bound=nn.Module)


def train_bundle(
    data: Path,
    bundle: Path,
    prepare: Callable[[World, Tell], P],
    make: Callable[[P, Attempt], N],
    fill: Callable[[Path, N, P, float, Tell], None],
    tell: Tell | None,
    *,
    resume: bool,
    restart: bool,
    on_epoch: EpochRow | None,
) -> Bundle | None:
    """Train and write `bundle`, a new directory or one that held a bundle.

    Checkpoints lie in `BUNDLE.run` until the bundle is whole and in its place. The same data, options and
    machine give the same weights, resumed or not. Started by `torchrun`, process 0 alone writes; the
    others return None.

    Args:
        data: where the pictures lie.
        prepare: reads them.
        make: returns the trained network, on the CPU, in eval mode.
        fill: writes all files of the bundle into a directory; told the seconds that training took.

    Raises:
        DataError: the pictures cannot be used, or `bundle` holds something else.
        InspectdError: no copy passed its gate, and the bundle that is there has one; what was learned stays
            in `BUNDLE.run`.
        UsageError: the options make no sense here, or an unfinished or a running training is in the way.
    """
    told: Tell = tell or _silent
    started = time.monotonic()
    refuse_other_things(bundle, data)
    with ExitStack() as stack:
        with joined_world() as world:
            if world.main:
                unfinished = RunFolder.beside(bundle, {})
                stack.enter_context(unfinished.held())
                _settle_unfinished(unfinished, resume=resume, restart=restart)
            here = told if world.main else _silent
            piece = prepare(world, here)
            run = RunFolder.beside(bundle, _identity(piece))
            if world.main and run.exists:
                run.check()
            network = make(piece, Attempt(run, started, here, on_epoch))
        if not world.main:
            return None
        trained_s = time.monotonic() - started
        with replacing(bundle) as work:
            fill(work, network, piece, trained_s, told)
            refuse_lesser(work, bundle)
        run.remove()
        return load_bundle(bundle)


def refuse_uneven(options: TrainOptions, pictures: int, world: World) -> None:
    """Every process takes as many pictures of a batch as the others, and learns from more than one value at a time.

    Raises:
        UsageError: the batch cannot be shared or cut so.
    """
    batch = min(options.batch_size, pictures)
    if batch % world.size:
        raise UsageError(f"train: --batch-size {options.batch_size} cannot be shared by {world.size} processes")
    share = batch // world.size
    parts = -(-share // -(-share // options.accumulate))
    if options.size <= _ONE_VALUE_SIDE and share // parts < 2:
        raise UsageError(
            f"train: at --size {options.size}, batches of {batch} in parts of single pictures (--accumulate "
            f"{options.accumulate}) leave BatchNorm one value; use a smaller --accumulate, or a larger --size"
        )


def fit_network(
    network: nn.Module,
    task: Task,
    piece: Piece,
    attempt: Attempt,
    *,
    finish_s: float,
    settled: nn.Module,
    settle_batch: int,
) -> None:
    """Run the loop on `network`, on its device and channels last, and settle its statistics.

    Args:
        finish_s: of a time budget, so much at most is kept for what comes after.
        settled: the part of the network whose BatchNorm statistics are settled, `settle_batch` pictures at a time.
    """
    options = piece.options
    fit(
        network,
        task,
        options,
        world=piece.world,
        device=piece.device,
        run=attempt.run,
        budget_s=None if options.time_budget_s is None else _time_left(options.time_budget_s, attempt, finish_s),
        tell=attempt.tell,
        on_epoch=attempt.on_epoch,
    )
    if piece.world.main:
        _settle(network, task, settled, settle_batch, half_precision(piece.device, options))


def log_start(piece: Piece, pictures: int) -> None:
    """Say what is about to be trained, and how."""
    options = piece.options
    log.info(
        "training",
        pictures=pictures,
        device=str(piece.device),
        dtype=str(half_precision(piece.device, options) or torch.float32),
        stages=options.stage_plan,
        optimiser=options.optimiser_plan,
        rate=options.peak_rate,
    )


def start_as_identity(network: nn.Module) -> None:
    """Let every residual block begin as nothing but its shortcut: the last norm of each scales with zero.

    Goyal et al. 2017, "Accurate, Large Minibatch SGD", section 5.1. Deep networks start to learn sooner so.
    """
    for name, module in network.named_modules():
        if name.endswith("bn2") and isinstance(module, nn.BatchNorm2d):
            nn.init.zeros_(module.weight)


def as_json(options: TrainOptions) -> dict[str, Any]:
    """The options as bundle.json and checkpoints keep them."""
    given = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(options).items()}
    found: dict[str, Any] = json.loads(json.dumps(given))
    return found


def _settle_unfinished(run: RunFolder, *, resume: bool, restart: bool) -> None:
    """Decide about an unfinished run that lies there: only what the user says happens to it.

    Raises:
        UsageError: there is one, and nothing was said; or there is none to resume.
    """
    if restart:
        run.remove()
    elif run.exists and not resume:
        raise UsageError(f"{run.path}: an unfinished run; continue it with --resume, or start over with --restart")
    elif resume and not run.exists:
        raise UsageError(f"{run.path}: no unfinished run to resume; leave out --resume")


def _identity(piece: Piece) -> dict[str, Any]:
    """What a checkpoint must have been made with to be continued."""
    made_with = {"data": piece.fingerprint, "processes": piece.world.size, "torch": torch.__version__}
    return {**made_with, **as_json(piece.options)}


def _settle(network: nn.Module, task: Task, settled: nn.Module, batch: int, half: torch.dtype | None) -> None:
    """Replace the statistics that moved along with training by plain averages, where that judges better."""
    device = next(network.parameters()).device

    def judged() -> Score:
        with torch.no_grad(), torch.autocast(device.type, half, enabled=half is not None):
            return task.judge(network.eval())

    before = judged()
    kept = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.autocast(device.type, half, enabled=half is not None):
        settle_batch_norm(settled, task.plain_batches(batch))
    if judged().key < before.key:
        network.load_state_dict(kept)


def _time_left(budget_s: float, attempt: Attempt, finish_s: float) -> float:
    """What a time budget leaves for fitting, after reading, and before quantising and judging."""
    finish = min(_FINISH_SHARE * budget_s, finish_s)
    return max(0.25 * budget_s, budget_s - finish - (time.monotonic() - attempt.started))


def _silent(stage: str, done: int, total: int, message: str = "") -> None:
    """Nobody is told; of several processes only the first speaks."""
