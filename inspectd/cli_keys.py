"""`inspectd keys`: make the keys that the sockets ask for, and show who may connect. Registered by `cli`."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Keys of the sockets (CURVE): make them, and list who may connect.", no_args_is_help=True, add_completion=False
)


class RoleName(StrEnum):
    read = "read"
    control = "control"


Output = Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where the two files go.")]


@app.command()
def server(
    output: Output,
    name: Annotated[str, typer.Option(help="Name of the files.")] = "server",
) -> None:
    """Make the daemon's key pair. What exists already is never replaced."""
    from inspectd.verdict.keys import write_pair

    public, secret = write_pair(output, name)
    print(f"{secret}: secret; stays on this machine, and only the daemon's user may read it (chown it to that user)")
    print(f"{public}: public; every client needs a copy of it")
    print("\nIn the configuration:\n")
    print(f'[security]\nserver_key = "{secret.resolve()}"\nclient_keys = "{(output / "clients").resolve()}"')
    print("\nThen make a key for each client:")
    print(f"inspectd keys client NAME --role read -o DIR --into {output / 'clients'}")


@app.command()
def client(
    name: Annotated[str, typer.Argument(help="Who it is for; the daemon's log and its refusals call it so.")],
    role: Annotated[RoleName, typer.Option(help="read: listen and ask. control: also trigger, reload, switch.")],
    output: Output,
    into: Annotated[
        Path | None,
        typer.Option(metavar="CLIENT_KEYS", help="The daemon's security.client_keys: admit the client at once."),
    ] = None,
) -> None:
    """Make a client's key pair, and admit it. What exists already is never replaced."""
    from inspectd.errors import UsageError
    from inspectd.verdict.keys import PUBLIC_SUFFIX, certificate_path, load_certificate, write_pair, write_public

    admitted = None if into is None else certificate_path(into / role.value, name, PUBLIC_SUFFIX)
    if admitted is not None and admitted.exists():
        raise UsageError(f"{admitted}: is there already; choose another name, or delete it, which revokes that key")
    public, secret = write_pair(output, name)
    print(f"{secret}: secret; move it to the client, and leave no copy here")
    if admitted is None:
        print(f"{public}: public; copy it to {role.value}/ in the daemon's security.client_keys")
    else:
        write_public(admitted, load_certificate(public).public)
        print(f"{public}: public; its copy {admitted} admits the client, deleting that copy revokes it")


@app.command("list")
def list_clients(
    folder: Annotated[Path, typer.Argument(metavar="CLIENT_KEYS", help="The daemon's security.client_keys.")],
) -> None:
    """Who may connect, as the daemon reads the folder; exit code 1 when something in it is not accepted."""
    from inspectd.verdict.keyring import Keyring

    keyring = Keyring(folder)  # logs what it does not accept
    for key, who in sorted(keyring.clients.items(), key=lambda item: str(item[1])):
        print(f"{who}  {key.decode()}")
    sys.exit(1 if keyring.problems else 0)
