"""The command `flow-vla bags`: what is done with recorded bags as files and on the graph."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flow_vla_core.errors import DataError
from flow_vla_ros.play import play

__all__ = ['app', 'repair']

app = typer.Typer(help='Play and repair recorded bags.', no_args_is_help=True)
app.command()(play)


@app.callback()
def bags() -> None:
    """Play and repair recorded bags."""


@app.command()
def repair(folders: Annotated[list[Path], typer.Argument(help='bags, or folders that hold them at any depth')]) -> None:
    """Rebuild index and metadata of bags that a killed process has left; whole ones are left as they are.

    What can't be read is kept in a file NAME.mcap.damaged. Ends with exit code 1 if a bag could not be repaired.
    """
    from flow_vla_core.data.bag_repair import find_recordings, repair_all
    failed = False
    for folder in folders:
        if not find_recordings(folder):
            raise DataError(f'{folder}: no bags with MCAP files at or below it')
        for done in repair_all(folder):
            typer.echo(done)
            failed = failed or bool(done.error)
    raise typer.Exit(1 if failed else 0)
