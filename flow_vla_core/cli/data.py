"""The command `flow-vla data`: looks at recorded bags, checks, cuts and shows them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.progress import Progress
import typer

from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.data.inspection import Detail, Severity, Survey, expand, inspect_bags
from flow_vla_core.data.inspection.findings import read_codes, worst
from flow_vla_core.errors import DataError

__all__ = ['app']

app = typer.Typer(no_args_is_help=True, help='Look at recorded bags; check, cut and show them.')

Bags = Annotated[list[Path], typer.Argument(help='Bags, or folders with bags below.')]
Contract = Annotated[str | None, typer.Option(
    help='Robot contract, a file or a name in config/robots; by default the one that each bag was recorded for.')]
Workers = Annotated[int, typer.Option(min=1, help='Processes.')]


@app.command()
def inspect(bags: Bags, contract: Contract = None,
            out: Annotated[Path | None, typer.Option(help='HTML page with pictures; needs nothing else.')] = None,
            json_file: Annotated[Path | None, typer.Option('--json', help='All numbers and findings.')] = None,
            workers: Workers = 1) -> None:
    """Show what bags hold and what is wrong with them: rates, gaps, skew, delays, lengths, words, actions."""
    from flow_vla_core.data.inspection.page import write_page
    from flow_vla_core.data.inspection.summary import bag_names, bags_table, findings_table, to_json, topics_table
    console, paths = Console(), expand(bags)
    survey = _survey(paths, contract, Detail.share(len(paths)) if out else Detail.none(), workers)
    console.print(bags_table(survey), topics_table(survey), sep='\n\n')
    if survey.findings:
        console.print('', findings_table(survey.findings, bag_names(survey)), sep='\n')
    if out is not None:
        write_page(out, survey)
        console.print(f'\nwritten: {out}', soft_wrap=True)
    if json_file is not None:
        _write(json_file, json.dumps(to_json(survey), indent=1))
        console.print(f'written: {json_file}', soft_wrap=True)


@app.command()
def check(bags: Bags, contract: Contract = None,
          allow: Annotated[list[str] | None, typer.Option(
              help='Findings that are all right, by name or number; may be given several times.')] = None,
          workers: Workers = 1) -> None:
    """Print one line for each finding; exit code 1 if one of them is an error, 2 for wrong usage."""
    codes = read_codes(allow or [])
    survey = _survey(expand(bags), contract, Detail.none(), workers).without(codes)
    for finding in survey.findings:
        print(finding)
    errors = sum(finding.severity == Severity.ERROR for finding in survey.findings)
    print(f'{len(survey.bags)} bags, {errors} errors, {len(survey.findings) - errors} other findings')
    if worst(survey.findings) == Severity.ERROR:
        raise typer.Exit(1)


def _survey(paths: list[Path], contract: str | None, detail: Detail, workers: int) -> Survey:
    robot = RobotContract.load(find_contract(contract)) if contract else None
    with Progress(console=Console(stderr=True), transient=True, disable=len(paths) < 2) as progress:
        task = progress.add_task('reading', total=len(paths))
        return inspect_bags(paths, robot, detail, workers, lambda _: progress.advance(task))


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise DataError(f'{path}: {error.strerror}') from error
