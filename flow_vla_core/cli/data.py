"""The command `flow-vla data`: looks at recorded bags, checks, cuts and shows them, and exchanges them with LeRobot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.progress import Progress
import typer

from flow_vla_core.cli import exchange
from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.data.bags import need_bags
from flow_vla_core.data.editing import Written
from flow_vla_core.data.inspection import Detail, Severity, Survey, inspect_bags
from flow_vla_core.data.inspection.findings import read_codes, worst
from flow_vla_core.errors import ConfigError, DataError

__all__ = ['app']

app = typer.Typer(no_args_is_help=True, help='Look at recorded bags; check, cut, show and exchange them.')
app.command('export')(exchange.export)
app.command('import')(exchange.import_)

Bags = Annotated[list[Path], typer.Argument(help='Bags, or folders with bags below.')]
Contract = Annotated[str | None, typer.Option(
    help='Robot contract, a file or a name in config/robots; by default the one that each bag was recorded for.')]
Without = Annotated[list[str] | None, typer.Option(help='Topic that is left out; may be given several times.')]
Workers = Annotated[int, typer.Option(min=1, help='Processes.')]


@app.command()
def inspect(bags: Bags, contract: Contract = None,
            out: Annotated[Path | None, typer.Option(help='HTML page with pictures; needs nothing else.')] = None,
            json_file: Annotated[Path | None, typer.Option('--json', help='All numbers and findings.')] = None,
            workers: Workers = 1) -> None:
    """Show what bags hold and what is wrong with them: rates, gaps, skew, delays, lengths, words, actions."""
    from flow_vla_core.data.inspection.page import write_page
    from flow_vla_core.data.inspection.summary import bag_names, bags_table, findings_table, to_json, topics_table
    console, paths = Console(), need_bags(bags)
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
    survey = _survey(need_bags(bags), contract, Detail.none(), workers).without(codes)
    for finding in survey.findings:
        print(finding)
    errors = sum(finding.severity == Severity.ERROR for finding in survey.findings)
    print(f'bags: {len(survey.bags)}, errors: {errors}, other findings: {len(survey.findings) - errors}')
    if worst(survey.findings) == Severity.ERROR:
        raise typer.Exit(1)


def _survey(paths: list[Path], contract: str | None, detail: Detail, workers: int) -> Survey:
    robot = _load(contract)
    with Progress(console=Console(stderr=True), transient=True, disable=len(paths) < 2) as progress:
        task = progress.add_task('reading', total=len(paths))
        return inspect_bags(paths, robot, detail, workers, lambda _: progress.advance(task))


def _load(contract: str | None) -> RobotContract | None:
    return RobotContract.load(find_contract(contract)) if contract else None


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise DataError(f'{path}: {error.strerror}') from error


@app.command()
def trim(
    source: Annotated[Path, typer.Argument(metavar='IN', help='A bag, or a folder with bags below.')],
    out: Annotated[Path, typer.Argument(help='The new bag, or the folder of the new ones; must not exist.')],
    start: Annotated[float, typer.Option(min=0, help='Begin so many seconds after the first message.')] = 0.0,
    end: Annotated[float | None, typer.Option(help='End so many seconds after the first message.')] = None,
    idle: Annotated[bool, typer.Option('--idle', help='Cut off both ends as far as nothing moves.')] = False,
    contract: Contract = None, without: Without = None,
) -> None:
    """Cut the ends of bags off; messages and stamps stay as they are, and what was said once, such as the words."""
    from flow_vla_core.data.editing import trim_bag
    robot = _load(contract)
    for bag, target in _targets(source, out).items():
        _say(trim_bag(bag, target, start, end, idle, robot, without or ()))


@app.command()
def split(
    source: Annotated[Path, typer.Argument(metavar='IN', help='A bag, or a folder with bags below.')],
    out: Annotated[Path, typer.Argument(help='Folder of the new bags.')],
    by: Annotated[str, typer.Option(
        help='marks (of episodes), instruction, 30s (any duration), /topic (whose messages begin an episode), or 10% '
             '(so many bags of each instruction are copied to OUT/validation, the others to OUT/train).')] = 'marks',
    seed: Annotated[int, typer.Option(min=0, help='Of the choice for validation.')] = 0,
    link: Annotated[bool, typer.Option('--link', help='For validation: hard links in place of copies.')] = False,
    without: Without = None,
) -> None:
    """Cut bags into episodes, or deal whole bags out for training and validation."""
    from flow_vla_core.data.editing import deal_out, split_bag
    if by.endswith('%'):
        _check_apart(source, out)
        dealt = deal_out(need_bags([source]), source, out, _percent(by), seed, link)
        Console().print(', '.join(f'{len(bags)} bags in {out / side}' for side, bags in dealt.items()), soft_wrap=True)
        return
    for bag, target in _targets(source, out).items():
        for written in split_bag(bag, target.parent if target != out else out, by, without or ()):
            _say(written)


def _targets(source: Path, out: Path) -> dict[Path, Path]:
    """Return the bags at or below a folder with the places of the new ones."""
    bags = need_bags([source])
    _check_apart(source, out)
    if bags == [source]:
        return {source: out}
    places = {bag: out / bag.relative_to(source) for bag in bags}
    return {bag: place.with_suffix('') if bag.is_file() else place for bag, place in places.items()}


def _check_apart(source: Path, out: Path) -> None:
    if out.resolve().is_relative_to(source.resolve()):
        raise DataError(f'{out}: lies in {source}, whose bags would be there twice; give another folder')


def _percent(text: str) -> float:
    try:
        return float(text.removesuffix('%')) / 100
    except ValueError:
        raise ConfigError(f'by: {text!r}; a share is written as 10%') from None


def _say(written: Written) -> None:
    for problem in written.problems:
        Console(stderr=True).print(f'read as far as it goes: {problem}', soft_wrap=True, markup=False)
    Console().print(f'written: {written.folder}  {written.messages} messages, {written.duration:.2f} s', soft_wrap=True)


@app.command()
def view(
    bag: Annotated[Path, typer.Argument(help='A bag.')],
    save: Annotated[Path | None, typer.Option(help='Write a file .rrd and open nothing.')] = None,
    contract: Contract = None,
    policy: Annotated[Path | None, typer.Option(
        help='Checkpoint of a policy, whose plans are laid over the recorded actions.')] = None,
    quality: Annotated[int, typer.Option(min=0, max=100, help='JPEG quality of raw pictures; 0: as they are.')] = 90,
) -> None:
    """Show a bag in Rerun: pictures, state and actions by name, words, marks and who acts, on ROS time."""
    from flow_vla_core.cli.view import show_bag
    counts = show_bag(bag, _load(contract), save, policy, quality)
    console = Console()
    for entity, count in sorted(counts.items()):
        console.print(f'{count:8,}  {entity}', soft_wrap=True, highlight=False)
    if save is not None:
        console.print(f'written: {save}', soft_wrap=True)
