"""`nexapod blob ...`: the commands and their options. Every command loads it: the work is done in blob_work.py."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    from nexapod.cli.client import Client

blob_app = typer.Typer(no_args_is_help=True, help="Blobs: bytes named by what they are, moved from peer to peer.")

Home = Annotated[Path | None, typer.Option("--home", help="The daemon's home folder.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Ref = Annotated[str, typer.Argument(metavar="BLOB", help="A blob's name, <64 hex digits>:<size>.", show_default=False)]
WAIT_S: Final = 60


def _client(home: Path | None) -> Client:
    from nexapod.cli.client import Client
    from nexapod.config.settings import default_home
    from nexapod.store.home import Home as Layout

    return Client(Layout(home.absolute() if home is not None else default_home(os.environ)).api_socket)


@blob_app.command()
def put(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A file, a folder or an archive.", show_default=False)],
    unpack: Annotated[
        bool, typer.Option("--unpack", help="PATH is a .tar, .tar.gz or .zip archive: take in its files as a tree.")
    ] = False,
    pin: Annotated[bool, typer.Option("--pin", help="Keep it until it is unpinned.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Store a file; or a folder, as a tree of its files.

    Unless it is pinned or a job names it, it may go after an hour.
    """
    from nexapod.cli import blob_work

    blob_work.put(_client(home), path, unpack=unpack, pin=pin, as_json=as_json)


@blob_app.command()
def get(
    ref: Ref,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="PATH", help="Where to write it.", show_default=False)
    ],
    raw: Annotated[bool, typer.Option("--raw", help="Write a tree's own bytes, not its files.")] = False,
    wait: Annotated[int, typer.Option(help="Seconds to go on while nothing arrives.", min=0)] = WAIT_S,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Write a blob to a file, or a tree to a folder (to a tar archive, if PATH ends in .tar).

    What is not here is fetched from the mesh. Nothing is overwritten.
    """
    from nexapod.cli import blob_work

    blob_work.get(_client(home), ref, output, raw=raw, wait_s=wait, as_json=as_json)


@blob_app.command()
def pin(ref: Ref, home: Home = None, as_json: Json = False) -> None:
    """Keep a blob that is here, whatever room is wanted; of a tree, its files too."""
    from nexapod.cli import blob_work

    blob_work.pin(_client(home), ref, as_json=as_json)


@blob_app.command()
def unpin(ref: Ref, home: Home = None, as_json: Json = False) -> None:
    """Let a blob go when room is wanted; of a tree, its files too."""
    from nexapod.cli import blob_work

    blob_work.unpin(_client(home), ref, as_json=as_json)


@blob_app.command()
def stat(ref: Ref, home: Home = None, as_json: Json = False) -> None:
    """What is here of a blob, and why it stays."""
    from nexapod.cli import blob_work

    blob_work.stat(_client(home), ref, as_json=as_json)


@blob_app.command()
def verify(
    refs: Annotated[list[str] | None, typer.Argument(metavar="BLOB...", help="Blobs.", show_default=False)] = None,
    every: Annotated[bool, typer.Option("--all", help="All whole blobs that are here.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Read blobs again. What is damaged is set aside, and fetched again when somebody needs it."""
    if not refs and not every:
        raise typer.BadParameter("name blobs, or all that are here with --all", param_hint="BLOB...")
    from nexapod.cli import blob_work

    raise typer.Exit(blob_work.verify(_client(home), list(refs or ()), every=every, as_json=as_json))


@blob_app.command(name="list")
def list_blobs(home: Home = None, as_json: Json = False) -> None:
    """The blobs that are here, the last used first."""
    from nexapod.cli import blob_work

    blob_work.show_list(_client(home), as_json=as_json)
