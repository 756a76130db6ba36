"""The command line: thin commands; whatever is heavy is imported inside them."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from typer.exceptions import TyperException

from inspectd import __version__, cli_bridge, cli_journal, cli_keys, cli_line, cli_workshop
from inspectd.errors import InspectdError, UsageError

if TYPE_CHECKING:
    from inspectd.config import Settings

app = typer.Typer(
    help="Line-side visual inspection: from a camera to a defect verdict.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Config = Annotated[Path, typer.Option("-c", "--config", metavar="FILE", help="Configuration file (TOML).")]
Recipe = Annotated[
    str | None, typer.Option(metavar="NAME", help="Look at that recipe's regions; else at those that the start uses.")
]


def main() -> None:
    """Entry point: an expected error is one line on stderr and its exit code; a traceback only with --debug."""
    try:
        try:
            code = app(standalone_mode=False) or 0
        finally:
            print(end="", flush=True)  # what cannot be written is an error here, and not at the interpreter's end
        sys.exit(code)
    except TyperException as err:  # an option that is unknown, missing or wrong; typer itself would draw a box
        if message := " ".join(err.format_message().split()):
            print(f"inspectd: {message.replace('Value error, ', '')} Try --help.", file=sys.stderr)
        sys.exit(err.exit_code)
    except InspectdError as err:
        if "--debug" in sys.argv:
            raise
        from inspectd.source_spec import redact

        print(f"inspectd: {' '.join(redact(str(err)).split())}", file=sys.stderr)
        sys.exit(err.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        _write_no_more()
        sys.exit(0)
    except OSError as err:  # above all a full disk under standard output
        if "--debug" in sys.argv:
            raise
        print(f"inspectd: {f'{err.filename}: ' if err.filename else ''}{err.strerror or err}", file=sys.stderr)
        _write_no_more()
        sys.exit(1)


def _write_no_more() -> None:
    """The interpreter's end would try once more what standard output has not taken."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of expected errors too.")] = False,
) -> None:
    if version:
        print(f"inspectd {__version__}")
        raise typer.Exit
    if context.invoked_subcommand not in (None, "run"):
        _quiet_logs("debug" if debug else "warning")


def _quiet_logs(level: Literal["debug", "warning"]) -> None:
    from inspectd.observe.logs import configure_logging

    configure_logging("pretty", level)


@app.command()
def run(config: Config) -> None:
    """The daemon: runs until SIGTERM or SIGINT, or until every recording was played."""
    from inspectd.config import load_settings
    from inspectd.heap import share_arenas
    from inspectd.observe.logs import configure_logging

    share_arenas()  # before there are threads
    settings = load_settings(config)
    configure_logging(settings.log.format, settings.log.level)

    from inspectd.daemon import Daemon

    sys.exit(Daemon(settings, reread=lambda: load_settings(config)).run())


@app.command()
def check(
    config: Config,
    probe: Annotated[bool, typer.Option("--probe", help="Also open each camera and the model, and report.")] = False,
    learn: Annotated[
        bool, typer.Option("--learn", help="Learn what good pictures are like, while the line runs as it should.")
    ] = False,
    frames: Annotated[int, typer.Option(min=2, max=1_000_000, help="--learn: from so many frames.")] = 200,
    recipe: Recipe = None,
    force: Annotated[bool, typer.Option("--force", help="--learn: replace limits that are there.")] = False,
    widen: Annotated[bool, typer.Option("--widen", help="--learn: limits that are there make room.")] = False,
) -> None:
    """Validate the configuration and everything it names, without starting anything."""
    from inspectd.commission import probe_cameras, probe_models
    from inspectd.config import load_settings
    from inspectd.preflight import check_everything, told_hashes, unlearnt

    settings = load_settings(config)
    in_force = _in_force(settings, recipe)
    if learn:
        _learn(in_force, frames, force=force, widen=widen)
    if force or widen:
        raise UsageError("--force and --widen go with --learn")
    if recipe is not None and not probe:
        raise UsageError("--recipe goes with --learn or --probe")
    bundles = check_everything(settings)
    for warning in unlearnt(settings):
        print(f"warn  {warning}")
    for line in told_hashes(settings, bundles):
        print(f"model {line}")
    if not probe:
        cameras = ", ".join(f"{camera.name} ({len(camera.rois)} ROI)" for camera in in_force.cameras)
        print(f"{config}: ok, config {settings.sha256[:12]}; {cameras}")
        return
    worst = 0
    for findings in (probe_models(settings, bundles), probe_cameras(in_force)):
        for finding in findings:
            worst = max(worst, _report(finding))
    sys.exit(worst)


def _in_force(settings: Settings, recipe: str | None) -> Settings:
    """As the daemon starts, or as it goes on with another recipe."""
    if recipe is not None and recipe not in settings.recipes:
        raise UsageError(f"--recipe {recipe}: the recipes are {', '.join(settings.recipes) or 'none'}")
    return settings.with_recipe(recipe or settings.recipe)


def _learn(in_force: Settings, frames: int, *, force: bool, widen: bool) -> NoReturn:
    from rich.console import Console

    from inspectd.commission import learn_cameras
    from inspectd.progress import progress_bars

    if force and widen:
        raise UsageError("--force replaces limits and --widen keeps them: choose one")
    worst = 0
    with progress_bars(Console(stderr=True)) as tell:
        findings = learn_cameras(
            in_force, frames, lambda name, done: tell(name, done, frames), force=force, widen=widen
        )
        for finding in findings:
            worst = max(worst, _report(finding))
    sys.exit(worst)


@app.command()
def snapshot(
    config: Config,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where the PNGs go.")],
    recipe: Recipe = None,
) -> None:
    """Write one PNG per camera with its ROIs drawn, for commissioning."""
    from inspectd.commission import write_snapshots
    from inspectd.config import load_settings

    in_force = _in_force(load_settings(config), recipe)
    sys.exit(max(_report(finding) for finding in write_snapshots(in_force, output)))


def _report(finding: Any) -> int:
    if finding.problem is None:
        print(f"ok    {finding.subject}: {finding.text}")
    else:
        from inspectd.source_spec import redact

        where = f" ({finding.text})" if finding.text else ""
        print(f"FAIL  {finding.subject}: {redact(finding.problem)}{where}")
    for warning in finding.warnings:
        print(f"warn  {finding.subject}: {warning}")
    return int(finding.exit_code)


@app.command()
def synth(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where the pictures go; new or one of ours.")],
    per_class: Annotated[int, typer.Option(min=1, max=100_000, help="Pictures of each kind.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same pictures.")] = 0,
    size: Annotated[int, typer.Option(min=64, max=2048, help="Width and height in pixels.")] = 400,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write beside what is there.")] = False,
) -> None:
    """Write a labelled folder of generated parts: good, scratch, dent, stain, empty."""
    from rich.console import Console

    from inspectd.model.synth import KINDS, write_dataset
    from inspectd.progress import progress_bars

    with progress_bars(Console(stderr=True)) as tell:
        write_dataset(
            directory,
            per_class,
            seed,
            (size, size),
            lambda done, total: tell("pictures", done, total),
            overwrite=overwrite,
        )
    print(f"{directory}: {per_class} pictures each of {', '.join(KINDS)}")


app.add_typer(cli_bridge.app, name="bridge")
app.add_typer(cli_journal.app, name="journal")
app.add_typer(cli_keys.app, name="keys")
app.command()(cli_workshop.train)
app.command()(cli_workshop.evaluate)
app.command()(cli_workshop.export)


for command in cli_line.COMMANDS:
    app.command()(command)


@app.command()
def bench(
    bundle: Annotated[Path | None, typer.Option(help="Bundle to measure; random weights without one.")] = None,
    frames: Annotated[int, typer.Option(min=16, help="Frames of each measurement.")] = 600,
    repeats: Annotated[int, typer.Option(min=1, help="Repeats of each, in turns; the median counts.")] = 3,
    live_frames: Annotated[int, typer.Option(min=0, help="Frames of the live latency measurement; 0 skips it.")] = 300,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Measure this machine: decode, crop, engine, end to end, against a plain loop and a hand-written one."""
    from rich.console import Console

    from inspectd.bench import BenchOptions, run_bench

    options = BenchOptions(bundle=bundle, frames=frames, repeats=repeats, live_frames=live_frames)
    result = run_bench(options, Console(stderr=as_json))
    if as_json:
        print(result.model_dump_json(indent=2))


@app.command()
def demo(
    seconds: Annotated[float | None, typer.Option(min=1, help="Stop after so long; Ctrl-C otherwise.")] = None,
    directory: Annotated[Path, typer.Option("--dir", help="Where pictures, bundle and logs are kept.")] = Path("demo"),
) -> None:
    """Generated parts: trains a small bundle, runs the daemon on a conveyor, shows verdicts beside the truth."""
    from rich.console import Console

    from inspectd.demo import run_demo

    sys.exit(run_demo(directory, seconds, Console()))


class SchemaName(StrEnum):
    verdict = "verdict"
    part = "part"
    status = "status"
    heartbeat = "heartbeat"
    config = "config"
    evaluation = "evaluation"


@app.command()
def schema(name: Annotated[SchemaName, typer.Argument(help="Which schema.")]) -> None:
    """Print a JSON Schema: of the verdict stream's messages, of the configuration, or of an evaluation's report."""
    if name is SchemaName.evaluation:
        from inspectd.workshop.evaluation.figures import Report

        print(json.dumps(Report.model_json_schema(), indent=2))
    elif name is SchemaName.config:
        from inspectd.config import Settings

        print(json.dumps(Settings.model_json_schema(), indent=2))
    else:
        from inspectd.verdict.schema import json_schema

        print(json.dumps(json_schema(name.value), indent=2))
