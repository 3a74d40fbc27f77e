"""A contract that forgives late samples, for tests that are not about lateness and may run on a busy machine."""

from __future__ import annotations

from pathlib import Path

from flow_vla_core.contract import RobotContract, find_contract

__all__ = ['write_patient']


def write_patient(folder: Path, robot: str = 'metaworld', seconds: float = 20.0) -> str:
    """Write a robot's contract, with that much time for each sample, and return its path; its label stays."""
    contract = RobotContract.load(find_contract(robot))
    late = {'max_age': seconds, 'max_skew': seconds}
    path = folder / f'{robot}.yaml'
    contract.model_copy(update={
        'cameras': tuple(camera.model_copy(update=late) for camera in contract.cameras),
        'state': tuple(stream.model_copy(update=late) for stream in contract.state)}).dump(path)
    return str(path)
