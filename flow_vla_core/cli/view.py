"""What `flow-vla data view` does: a bag and the plans of a policy, in Rerun's window or in a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flow_vla_core.contract import RobotContract
from flow_vla_core.data.bag_reader import Bag, open_bag
from flow_vla_core.data.inspection.bag_report import choose_contract
from flow_vla_core.data.rerun_log import blueprint, log_bag, log_series
from flow_vla_core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from rerun import RecordingStream

__all__ = ['show_bag']


def show_bag(path: Path, contract: RobotContract | None, save: Path | None, policy: Path | None,
             quality: int = 90) -> dict[str, int]:
    """Log a bag, and open Rerun or write a file.

    Args:
        path: of the bag.
        contract: by default the one that the bag's marks name, or else the policy's.
        save: file to write; None opens Rerun.
        policy: checkpoint whose plans are shown.
        quality: JPEG quality of raw pictures; 0 logs them as they are.

    Returns:
        Entity -> how many times it was logged.

    Raises:
        ConfigError: if Rerun is not installed.
        DataError: if the bag can't be read or is empty, or the file exists or can't be written.
    """
    rr = _rerun()
    bag = open_bag(path)
    if next(bag.read(), None) is None:
        raise DataError(f'{path}: no messages')
    robot, _ = choose_contract(path, bag.marks, contract)
    recording = rr.RecordingStream('flow_vla', recording_id=path.name)
    for timeline in ('log_time', 'log_tick'):
        recording.disable_timeline(timeline)
    _connect(recording, save)
    counts = log_bag(bag, robot, recording, quality)
    if policy is not None:
        counts |= _log_plans(bag, robot, policy, recording)
    recording.send_blueprint(blueprint(robot, counts))
    recording.flush()
    recording.disconnect()
    return counts


def _log_plans(bag: Bag, contract: RobotContract | None, policy: Path, recording: RecordingStream) -> dict[str, int]:
    from flow_vla_core.evaluation.recorded_plans import plan_bag
    from flow_vla_core.training.checkpoint import load_checkpoint
    robot = contract or load_checkpoint(policy).contract
    plans = plan_bag(policy, bag, robot)
    columns = [f'policy/{part.name}/{name}' for part in robot.actions for name in part.names]
    for column, entity in enumerate(columns):
        log_series(recording, entity, plans.stamps, plans.planned[:, column])
    error = np.abs(plans.planned - plans.done).mean(1)
    log_series(recording, 'policy/error', plans.stamps, error)
    return dict.fromkeys([*columns, 'policy/error'], len(plans.stamps))


def _connect(recording: RecordingStream, save: Path | None) -> None:
    if save is None:
        recording.spawn()
        return
    if save.exists():
        raise DataError(f'{save}: exists already; nothing is overwritten')
    try:
        save.parent.mkdir(parents=True, exist_ok=True)
        recording.save(str(save))
    except (OSError, RuntimeError) as error:
        raise DataError(f'{save}: {error}') from error


def _rerun() -> Any:
    try:
        import rerun
    except ModuleNotFoundError as error:
        raise ConfigError(f'{error}: flow-vla data view needs Rerun: pip install flow_vla[data]') from error
    return rerun
