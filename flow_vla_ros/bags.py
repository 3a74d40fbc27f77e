"""The command `flow-vla bags`: what is done with recorded bags as files and on the graph."""

from __future__ import annotations

import typer

from flow_vla_ros.play import play

__all__ = ['app']

app = typer.Typer(help='Play recorded bags.', no_args_is_help=True)
app.command()(play)


@app.callback()
def bags() -> None:
    """Play recorded bags."""
