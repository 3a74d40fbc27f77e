"""The demo: six instructions, one after another, to a simulated robot; report, video and plots of it."""

from __future__ import annotations

from pathlib import Path
import time
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
import typer

from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.evaluation.console import Progress
from flow_vla_core.evaluation.direct import DirectSettings
from flow_vla_core.evaluation.plots import plot_latency, plot_motion
from flow_vla_core.evaluation.sweep import UNSEEN_SEED, Plan, make_episodes
from flow_vla_core.simulation.robots import kind_of, max_steps_of
from flow_vla_ros.evaluate import Graph, checkpoint_folder, make_report, running_graph

if TYPE_CHECKING:
    from flow_vla_ros.film import Film, MotionTrace

__all__ = ['demo', 'step_limit']

EPISODES = 3
SECONDS = 255.0        # from the start of the command until the last episode ends; encoding comes on top
RESERVE_SECONDS = 11.0  # kept for each episode that is still to come
LEAST_STEPS = 150


def demo(
    out: Annotated[Path, typer.Option(help='folder of the report, the video and the plots')] = Path('out/demo'),
    checkpoint: Annotated[Path | None, typer.Option(help='folder of the policy; default: the shipped one')] = None,
    contract: Annotated[str, typer.Option(help='robot contract: a file, or a name in config/robots')] = 'metaworld',
    tasks: Annotated[str, typer.Option(help='comma-separated; six of the robot if empty')] = '',
    episodes: Annotated[int, typer.Option(min=1, help='for each task')] = EPISODES,
    seed: Annotated[int, typer.Option(min=0, help='of the first scene of each task')] = UNSEEN_SEED,
    seconds: Annotated[float, typer.Option(min=1, help='for starting and for all episodes together')] = SECONDS,
) -> None:
    """Give the simulated robot its instructions, film it, and say how it went.

    Simulation, policy and executor run as processes that talk over ROS in real time. Episodes that take long are cut
    short so that all of them fit into the given time.
    """
    start, console = time.monotonic(), Console()
    robot = RobotContract.load(find_contract(contract))
    names = tuple(tasks.split(',')) if tasks else kind_of(robot).demo_tasks
    settings = DirectSettings(max_steps=max_steps_of(robot))
    plan = Plan(str(checkpoint_folder(checkpoint, robot.name)), robot, names, episodes, seed, settings=settings)
    out.mkdir(parents=True, exist_ok=True)
    for path in _run(Graph(plan, out), start, seconds, console):
        console.print(f'written: {path}')


def step_limit(left_seconds: float, episodes: int, dt: float, most: int) -> int:
    """Return after how many steps the next episode is given up, so that the others have their time as well.

    Args:
        left_seconds: for all episodes that are still to come.
        episodes: how many these are, the next one included.
        dt: time of one step, s.
        most: steps, however much time there is.
    """
    free = left_seconds - RESERVE_SECONDS * episodes + LEAST_STEPS * dt
    return max(LEAST_STEPS, min(most, int(free / dt)))


def _run(graph: Graph, start: float, seconds: float, console: Console) -> list[Path]:
    from flow_vla_ros.film import Film, MotionTrace
    plan, out, trace = graph.plan, graph.out, MotionTrace(graph.plan.contract)
    orders, dt = make_episodes(plan), plan.contract.rates.policy_dt
    console.print(f'{len(orders)} episodes with the policy {plan.checkpoint}: starting simulation, policy, executor')
    with Film(plan.contract, out) as film:
        with running_graph(graph, film.attach, trace.attach) as conductor, Progress(len(orders), console) as progress:
            for index, order in enumerate(orders):
                left = start + seconds - time.monotonic()
                limit = step_limit(left, len(orders) - index, dt, plan.settings.max_steps)
                result = conductor.run(order, limit)
                film.cut(result, conductor.span)
                progress.add(result)
        report = make_report(graph, progress.results, time.monotonic() - start)
        console.print(report.table())
        console.print('encoding the video')
        return [report.write(out), *_pictures(graph, film, trace), *_videos(out, film, 1 / dt)]


def _pictures(graph: Graph, film: Film, trace: MotionTrace) -> list[Path]:
    times = graph.times()
    best = min(film.scenes, key=lambda scene: (not scene.result.success, scene.result.steps))
    outcome = 'success' if best.result.success else 'no success'
    title = f'{best.result.instruction!r}: {outcome} after {best.result.steps} steps'
    motion, latency = graph.out / 'motion.png', graph.out / 'latency.png'
    plot_motion(motion, trace.between(best.start, best.end, times.chunk_starts, title))
    plot_latency(latency, times.delays)
    return [motion, latency]


def _videos(out: Path, film: Film, rate: float) -> list[Path]:
    film.write_video(out / 'demo.mp4', rate)
    film.write_gif(out / 'demo.gif', rate)
    return [path for path in (out / 'demo.mp4', out / 'demo.gif') if path.exists()]
