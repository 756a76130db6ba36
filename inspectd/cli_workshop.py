"""The commands that make and judge models: train, evaluate, export. Registered by `cli`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from inspectd.workshop.options import (
    Device,
    ExportTarget,
    Imbalance,
    Metric,
    OptimiserName,
    Precision,
    Preset,
    Stages,
    Task,
)

_DATA_HELP = "One folder per class, or train/, val/, test/ of them; for a detector COCO JSON or Pascal VOC."
_ROLES = "How classes are told apart"
_LEARN = "How it learns"
_RUN = "The run"


Split = Literal["test", "val"]


def train(
    data: Annotated[Path, typer.Argument(metavar="DATA", help=_DATA_HELP)],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="BUNDLE", help="The bundle to write or replace.")],
    task: Annotated[Task, typer.Option(help="Classes of whole pictures, or boxes.")] = "classify",
    weights: Annotated[str, typer.Option(help="imagenet (downloads), none, or a file of weights.")] = "imagenet",
    size: Annotated[int, typer.Option(help="Side of the network's input; larger sees finer defects.")] = 224,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the pictures.")] = 20,
    batch_size: Annotated[int, typer.Option(min=2, help="Pictures per step.")] = 32,
    time_budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="Fit everything into this: 90s, 10m, 1h.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same model.")] = 0,
    ok: Annotated[
        list[str] | None,
        typer.Option(metavar="CLASS", help="Good parts; repeatable.", rich_help_panel=_ROLES),
    ] = None,
    empty: Annotated[
        list[str] | None,
        typer.Option(metavar="CLASS", help="Empty stations; repeatable.", rich_help_panel=_ROLES),
    ] = None,
    group_by: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX",
            help="What its group matches in a file name is one part; never split.",
            rich_help_panel=_ROLES,
        ),
    ] = None,
    val_fraction: Annotated[
        float, typer.Option(help="Share set aside to judge by, without a val/ folder.", rich_help_panel=_ROLES)
    ] = 0.2,
    stages: Annotated[
        Stages,
        typer.Option(help="What learns: the head only, layer by layer, or all at once.", rich_help_panel=_LEARN),
    ] = "auto",
    optimizer: Annotated[
        OptimiserName, typer.Option(help="auto: muon from no weights, adamw from given ones.", rich_help_panel=_LEARN)
    ] = "auto",
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Peak of the schedule; each optimizer has its own.", rich_help_panel=_LEARN),
    ] = None,
    layer_decay: Annotated[
        float, typer.Option(help="Learning rate of each layer group, relative to the next.", rich_help_panel=_LEARN)
    ] = 0.7,
    ema: Annotated[
        float, typer.Option(help="Decay of the averaged weights that are kept; 0 is none.", rich_help_panel=_LEARN)
    ] = 0.99,
    label_smoothing: Annotated[float, typer.Option(help="0 to 0.5.", rich_help_panel=_LEARN)] = 0.05,
    dropout: Annotated[float, typer.Option(help="Before the last layer.", rich_help_panel=_LEARN)] = 0.0,
    imbalance: Annotated[
        Imbalance, typer.Option(help="What is done about rare classes; auto says what.", rich_help_panel=_LEARN)
    ] = "auto",
    augment: Annotated[
        Preset, typer.Option(help="texture: surfaces without up and down.", rich_help_panel=_LEARN)
    ] = "industrial",
    simulate: Annotated[
        int,
        typer.Option(min=0, help="Fill defect classes up to so many with simulated defects.", rich_help_panel=_LEARN),
    ] = 0,
    metric: Annotated[
        Metric, typer.Option(help="What makes an epoch the best one.", rich_help_panel=_LEARN)
    ] = "worst-recall",
    max_false_rejects: Annotated[
        float, typer.Option(help="Good pictures that may be given up so that none escapes.", rich_help_panel=_LEARN)
    ] = 0.1,
    patience: Annotated[
        int | None,
        typer.Option(min=1, help="Epochs without a better one before it stops; half of all.", rich_help_panel=_LEARN),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an unfinished run.", rich_help_panel=_RUN)] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Discard an unfinished run.", rich_help_panel=_RUN)
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check the data, say what would be done.", rich_help_panel=_RUN),
    ] = False,
    preview: Annotated[
        Path | None,
        typer.Option(metavar="PNG", help="Only write a sheet of augmented pictures.", rich_help_panel=_RUN),
    ] = None,
    tensorboard: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write TensorBoard logs there.", rich_help_panel=_RUN)
    ] = None,
    int8: Annotated[bool, typer.Option(help="Make the INT8 copy.", rich_help_panel=_RUN)] = True,
    device: Annotated[Device, typer.Option(rich_help_panel=_RUN)] = "auto",
    precision: Annotated[Precision, typer.Option(rich_help_panel=_RUN)] = "auto",
    accumulate: Annotated[
        int, typer.Option(min=1, help="Parts that a batch is cut into, to save memory.", rich_help_panel=_RUN)
    ] = 1,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves it to torch.", rich_help_panel=_RUN)] = 0,
) -> None:
    """Fine-tune a model on labelled pictures and write a bundle with its gated copies."""
    from rich.console import Console

    from inspectd.observe.logs import configure_logging
    from inspectd.progress import EpochTable, progress_bars
    from inspectd.workshop.options import TrainOptions, parse_duration

    options = TrainOptions(
        task=task,
        weights=weights if weights in ("imagenet", "none") else Path(weights),  # type: ignore[arg-type]
        stages=stages,
        epochs=epochs,
        batch_size=batch_size,
        accumulate=accumulate,
        learning_rate=learning_rate,
        optimiser=optimizer,
        layer_decay=layer_decay,
        ema_decay=ema,
        label_smoothing=label_smoothing,
        dropout=dropout,
        patience=patience,
        metric=metric,
        imbalance=imbalance,
        augment=augment,
        simulate=simulate,
        ok=tuple(ok or ()),
        empty=tuple(empty or ()),
        group_by=group_by,
        size=size,
        seed=seed,
        val_fraction=val_fraction,
        max_false_rejects=max_false_rejects,
        time_budget_s=None if time_budget is None else parse_duration(time_budget),
        device=device,
        precision=precision,
        threads=threads,
        int8=int8,
    )
    configure_logging("pretty", "info")  # what was found in the data, and what was decided because of it
    console = Console(stderr=True)
    with ExitStack() as stack:
        tell = stack.enter_context(progress_bars(console))
        if dry_run or preview is not None:
            from inspectd.workshop.rehearsal import rehearse

            rehearse(data, output, options, preview, tell, print)
            return
        table = EpochTable(tell.print)
        listeners: list[Callable[[dict[str, float]], None]] = [table]
        if tensorboard is not None:
            from inspectd.workshop.tensorboard import TensorBoard

            board = TensorBoard(tensorboard, options)
            stack.callback(board.close)
            listeners.append(board)

        def on_epoch(row: dict[str, float]) -> None:
            for listener in listeners:
                listener(row)

        if options.task == "detect":
            from inspectd.workshop.detect.train import train_detector as make
        else:
            from inspectd.workshop.train import train as make
        bundle = make(data, output, options, tell, resume=resume, restart=restart, on_epoch=on_epoch)
    if bundle is not None:
        _report_training(bundle)


def _report_training(bundle: Any) -> None:
    manifest = bundle.manifest
    for copy in bundle.copies:
        figures = manifest.metrics[copy]
        point = figures["operating_point"]
        if manifest.task == "detect":
            found = f"mAP@0.5 {figures['map_50']:.1%}"
        else:
            recall = ", ".join(f"{name} {value:.0%}" for name, value in figures["recall"].items() if value is not None)
            found = f"accuracy {figures['accuracy']:.1%} ({recall})"
        print(
            f"{copy}: {figures['pictures']} validation pictures, {found}; "
            f"{point['escapes']} wrongly passed, {point['false_rejects']} of {point['good']} good ones not passed"
        )
    for copy, gate in manifest.metrics.get("gate", {}).items():
        if not gate["passed"]:
            print(f"{copy}: left out by its gate: {'; '.join(gate['problems'])}")
    print(f"{bundle.path}: {bundle.short_hash}")


def evaluate(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle to judge.")],
    data: Annotated[Path, typer.Argument(metavar="DATA", help="One folder per class, or train/, val/, test/ of them.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where report.html and .json go.")],
    split: Annotated[
        Split | None, typer.Option(help="Which pictures; default: test/ if it is there, else the whole folder.")
    ] = None,
    max_escapes: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of bad pictures that may pass, for a classifier's pass_min.")
    ] = 0.0,
    validation: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Pictures to choose it on; default: val/ beside test/.")
    ] = None,
    keep_similar: Annotated[
        bool, typer.Option("--keep-similar", help="Count pictures that nearly equal ones the bundle was made from.")
    ] = False,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves it to the engines.")] = 0,
) -> None:
    """Judge a bundle by labelled pictures that did not make it: a page to read and to sign, and its figures."""
    from rich.console import Console

    from inspectd.progress import progress_bars
    from inspectd.workshop.evaluation.evaluate import EvaluateOptions
    from inspectd.workshop.evaluation.evaluate import evaluate as evaluate_bundle
    from inspectd.workshop.evaluation.outcome import print_outcome

    options = EvaluateOptions(
        split=split,
        max_escapes=max_escapes,
        validation=validation,
        keep_similar=keep_similar,
        threads=threads,
    )
    with progress_bars(Console(stderr=True)) as tell:
        report = evaluate_bundle(bundle, data, output, options, tell)
    if report is not None:
        print_outcome(report, output, Console())


def export(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle to add a copy to.")],
    to: Annotated[ExportTarget, typer.Option("--to", help="Which deployable copy.")],
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DATA", help="The pictures that trained it, to calibrate and to gate with."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="A new bundle, for torch a file; else BUNDLE itself."),
    ] = None,
) -> None:
    """Write a deployable copy behind the gate: refused, with exit 1, where it would judge worse."""
    from rich.console import Console

    from inspectd.progress import progress_bars
    from inspectd.workshop.export import export_copy

    with progress_bars(Console(stderr=True)) as tell:
        outcome = export_copy(bundle, to, data, output, tell)
    for line in outcome.lines:
        print(line)
    sys.exit(0 if outcome.passed else 1)
