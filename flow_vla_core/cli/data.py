"""The command `flow-vla data`: looks into recordings, and exchanges them with other tools."""

from __future__ import annotations

import typer

from flow_vla_core.cli import exchange

__all__ = ['app']

app = typer.Typer(no_args_is_help=True, help='Look into recordings, and exchange them with other tools.')
app.command('export')(exchange.export)
app.command('import')(exchange.import_)
