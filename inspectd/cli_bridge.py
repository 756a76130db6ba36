"""The PLC bridges: `inspectd bridge modbus`, `opcua`, and what a controls engineer needs to know of them."""

from __future__ import annotations

import asyncio
import csv
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from inspectd.errors import UsageError

if TYPE_CHECKING:
    from inspectd.bridge.layout import Layout
    from inspectd.bridge.line import Line
    from inspectd.bridge.process import Server
    from inspectd.config import Settings

app = typer.Typer(help="Verdicts and triggers for a PLC, over Modbus TCP or OPC UA.", no_args_is_help=True)

_WHERE = "Where cameras and regions stand (one of the two)"
_LINE = "The line"
_KEYS = "Keys (CURVE), where the daemon has them"

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "-c", "--config", metavar="FILE", rich_help_panel=_WHERE, help="The daemon's configuration, in its order."
    ),
]
LayoutFile = Annotated[
    Path | None,
    typer.Option("--layout", metavar="FILE", rich_help_panel=_WHERE, help="A layout, as `bridge layout` prints it."),
]
Verdicts = Annotated[
    str | None,
    typer.Option(rich_help_panel=_LINE, help="The daemon's publish.bind; from -c, else tcp://127.0.0.1:5556."),
]
Control = Annotated[
    str | None,
    typer.Option(rich_help_panel=_LINE, help="The daemon's control.bind; from -c, else tcp://127.0.0.1:5557."),
]
Key = Annotated[
    Path | None, typer.Option("--key", metavar="FILE", rich_help_panel=_KEYS, help="This client's *.key_secret.")
]
ServerKey = Annotated[
    Path | None, typer.Option("--server-key", metavar="FILE", rich_help_panel=_KEYS, help="The daemon's public *.key.")
]
HoldMs = Annotated[
    int, typer.Option(min=50, max=60_000, help="An older result is fail-safe, milliseconds since it was published.")
]
From = Annotated[
    Literal["layout", "verdict", "part"],
    typer.Option("--from", help="What drives a region: as the layout says, each verdict, or each part of free run."),
]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="Serve other machines without any security: whoever connects may trigger.")
]


@app.command()
def modbus(
    bind: Annotated[str, typer.Option(metavar="ADDRESS:PORT", help="Where PLCs connect.")] = "127.0.0.1:1502",
    insecure: Insecure = False,
    config: ConfigFile = None,
    layout: LayoutFile = None,
    source: From = "layout",
    hold_ms: HoldMs = 1000,
    verdicts: Verdicts = None,
    control: Control = None,
    key: Key = None,
    server_key: ServerKey = None,
) -> None:
    """Serve verdicts and triggers over Modbus TCP, until SIGTERM. docs/plc.md has the registers."""
    from inspectd.bridge.process import is_loopback, parse_bind

    host, port = parse_bind(bind)
    if not insecure and not is_loopback(host):
        raise UsageError(
            f"--bind {bind}: Modbus TCP knows no authentication, and whoever reaches this address may trigger: "
            "bind 127.0.0.1, or add --insecure"
        )
    line = _line(config, layout, source, hold_ms, verdicts, control, key, server_key)
    try:
        from inspectd.bridge.modbus import ModbusServer
    except ModuleNotFoundError as err:
        raise _missing(err, "pymodbus", "modbus") from None
    _run(line, ModbusServer(line, host, port))


@app.command()
def opcua(
    bind: Annotated[str, typer.Option(metavar="ADDRESS:PORT", help="Where clients connect.")] = "127.0.0.1:4840",
    certificate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="This server's certificate, PEM or DER.")
    ] = None,
    private_key: Annotated[Path | None, typer.Option(metavar="FILE", help="Its private key, PEM or DER.")] = None,
    clients: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Certificates of the clients that may connect.")
    ] = None,
    insecure: Insecure = False,
    config: ConfigFile = None,
    layout: LayoutFile = None,
    source: From = "layout",
    hold_ms: HoldMs = 1000,
    verdicts: Verdicts = None,
    control: Control = None,
    key: Key = None,
    server_key: ServerKey = None,
) -> None:
    """Serve verdicts, triggers and recipes over OPC UA, until SIGTERM. docs/plc.md has the nodes."""
    from inspectd.bridge.process import is_loopback, parse_bind

    host, port = parse_bind(bind)
    files = {"--certificate": certificate, "--private-key": private_key, "--clients": clients}
    given = [name for name, path in files.items() if path is not None]
    if given and len(given) < len(files):
        raise UsageError(f"{', '.join(given)}: {', '.join(files)} go together")
    if not given and not insecure and not is_loopback(host):
        raise UsageError(
            f"--bind {bind}: whoever reaches this address may trigger: bind 127.0.0.1, "
            "give --certificate, --private-key and --clients, or add --insecure"
        )
    line = _line(config, layout, source, hold_ms, verdicts, control, key, server_key)
    try:
        from inspectd.bridge.opcua import OpcUaServer
        from inspectd.bridge.opcua_security import Security
    except ModuleNotFoundError as err:
        raise _missing(err, "asyncua", "opcua") from None
    security = None
    if certificate is not None and private_key is not None and clients is not None:
        security = Security(certificate, private_key, clients)
    _run(line, OpcUaServer(line, host, port, security))


@app.command("layout")
def print_layout(
    config: Annotated[Path, typer.Option("-c", "--config", metavar="FILE", help="The daemon's configuration.")],
) -> None:
    """Print the layout that a configuration has, to be kept beside the PLC program: addresses never move with it."""
    print(_layout(config, None)[0].to_toml(), end="")


@app.command("map")
def print_map(config: ConfigFile = None, layout: LayoutFile = None) -> None:
    """Print every Modbus address of a line, as CSV."""
    from inspectd.bridge.modbus_map import addresses

    _csv(("kind", "address", "type", "name"), addresses(_layout(config, layout)[0]))


@app.command("nodes")
def print_nodes(config: ConfigFile = None, layout: LayoutFile = None) -> None:
    """Print every OPC UA node of a line, as CSV."""
    from inspectd.bridge.opcua_tree import paths

    _csv(("kind", "type", "node id"), paths(_layout(config, layout)[0]))


def _line(
    config: Path | None,
    layout: Path | None,
    source: Literal["layout", "verdict", "part"],
    hold_ms: int,
    verdicts: str | None,
    control: str | None,
    key: Path | None,
    server_key: Path | None,
) -> Line:
    from inspectd.bridge.line import Line
    from inspectd.client import Keys

    if (key is None) != (server_key is None):
        raise UsageError("--key and --server-key go together: one is given, the other is missing")
    found, settings = _layout(config, layout)
    if settings is not None:
        if settings.security.server_key is not None and key is None:
            raise UsageError(
                f"{config}: security.server_key is set, so the daemon answers known keys only: "
                "give --key and --server-key; `inspectd keys` makes them"
            )
        verdicts = verdicts or _reachable(settings.publish.bind)
        control = control or _reachable(settings.control.bind)
    return Line(
        found.driven_by(None if source == "layout" else source),
        hold_ms=hold_ms,
        verdicts=verdicts or "tcp://127.0.0.1:5556",
        control=control or "tcp://127.0.0.1:5557",
        keys=None if key is None or server_key is None else Keys(server=server_key, client=key),
    )


def _layout(config: Path | None, layout: Path | None) -> tuple[Layout, Settings | None]:
    from inspectd.bridge.layout import layout_of, load_layout
    from inspectd.config import load_settings

    settings = None if config is None else load_settings(config)
    if layout is not None:
        return load_layout(layout), settings
    if settings is not None:
        return layout_of(settings), settings
    raise UsageError(
        "which cameras and regions stand where? Give -c FILE (the daemon's configuration) or --layout FILE"
    )


def _reachable(bind: str) -> str:
    """Where to connect to what is bound to all addresses of this machine."""
    return re.sub(r"^tcp://(\*|0\.0\.0\.0|\[::\]):", "tcp://127.0.0.1:", bind)


def _missing(err: ModuleNotFoundError, package: str, extra: str) -> UsageError:
    if (err.name or "").partition(".")[0] not in (package, "cryptography"):
        raise err
    return UsageError(f"{package} is not installed: pip install 'inspectd[{extra}]'")


def _run(line: Line, server: Server) -> None:
    from inspectd.bridge.process import run_until_signalled
    from inspectd.observe.logs import configure_logging
    from inspectd.observe.systemd import Notifier

    configure_logging("auto", "info")
    asyncio.run(run_until_signalled(line, server, Notifier.from_environment()))


def _csv(header: tuple[str, ...], rows: Any) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
