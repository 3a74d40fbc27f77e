"""The executor's table on disk: one row for each control tick."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
import time

import numpy as np

from flow_vla_core.contract import RobotContract
from flow_vla_core.execution import Command
from flow_vla_core.types import Actor
from flow_vla_ros.trace import Trace

__all__ = ['ExecutionTrace']


class ExecutionTrace:
    """Writes what was commanded, what was measured by then, and who acted.

    Args:
        path: of the CSV file; nothing is written if empty.
        contract: names the columns.

    Raises:
        ConfigError: if the file can't be made.
    """

    def __init__(self, path: str | Path, contract: RobotContract) -> None:
        self._streams = contract.state
        self._trace = Trace(path, [
            'stamp', 'wall_time', 'chunk_id', 'chunk_step', 'observation_stamp', 'state', 'code', 'limited', 'late',
            'work_ms', *(f'command.{part.name}.{name}' for part in contract.actions for name in part.names),
            *(f'measured.{stream.name}.{name}' for stream in contract.state for name in stream.names), 'source'])

    def write(self, now: int, command: Command, late: bool, work_ms: float, source: Actor,
              newest: Mapping[str, np.ndarray]) -> None:
        """Add the row of a tick; ``newest`` holds the last sample of each state stream."""
        if not self._trace.enabled:
            return
        measured = (newest.get(stream.name, np.full(len(stream.names), np.nan)) for stream in self._streams)
        self._trace.write((
            now, time.time_ns(), command.chunk_id, command.chunk_step, command.chunk_stamp, command.state.name,
            command.code.name, int(command.limited), int(late), f'{work_ms:.4f}',
            *(f'{value:.9g}' for value in command.values),
            *(f'{value:.6g}' for values in measured for value in values), source.name))

    def flush(self) -> None:
        """Bring what was added to the disk."""
        self._trace.flush()

    def close(self) -> None:
        """Flush, and write no more."""
        self._trace.close()
