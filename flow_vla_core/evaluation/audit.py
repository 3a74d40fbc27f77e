"""Checks published commands against the bounds of a contract."""

from __future__ import annotations

from collections import Counter

import numpy as np

from flow_vla_core.contract import ActionPart, RobotContract
from flow_vla_core.execution import rotations
from flow_vla_core.execution.command import Command
from flow_vla_core.execution.interpolation import rotation_of
from flow_vla_core.execution.limits import RATES

__all__ = ['Audit']

HALF_BIT = 2.0 ** -24   # rounding to float32, relative
SLACK = 1e-6            # relative


class Audit:
    """Counts violations of position, velocity, acceleration, jerk and workspace in a stream of commands.

    Derivatives are finite differences of the published values; rounding to float32 is allowed for. A bound on jerk is
    checked by the third difference of positions and by the second of velocities. A position part is checked from its
    first command on. The range of a rotation bounds what plans ask for, it is not checked here.

    Args:
        contract: says the parts and their bounds.
        period: of control, s; a tick that came later counts as one period after the one before.
    """

    def __init__(self, contract: RobotContract, period: float) -> None:
        places = contract.action_slices
        self._auditors = [_PartAudit(part, places[part.name], period) for part in contract.actions]
        self.commands = 0
        self.violations: Counter[str] = Counter()

    def restart(self) -> None:
        """Forget the commands so far: the robot is somewhere else."""
        for auditor in self._auditors:
            auditor.restart()

    def check(self, command: Command, elapsed: float) -> None:
        """Check one more command, ``elapsed`` s after the one before, at least 0."""
        self.commands += 1
        if not np.isfinite(command.values).all() or not np.isfinite(command.velocities).all():
            self.violations['not finite'] += 1
        for auditor in self._auditors:
            if auditor.name in command.parts:
                self.violations.update(auditor.check(command.values.astype(np.float64), elapsed))


class _PartAudit:
    """Checks one part; keeps its last changes."""

    def __init__(self, part: ActionPart, place: slice, period: float) -> None:
        self.name = part.name
        self._part, self._place, self._period = part, place, period
        turn = rotation_of(part)
        self._turn = turn if turn is not None else np.zeros(0, int)
        self._rest = np.setdiff1d(np.arange(part.dim), self._turn)
        orders = ('acceleration', 'jerk') if part.kind in RATES else ('velocity', 'acceleration', 'jerk')
        self._bounds = {order: None if getattr(part.limits, order) is None else np.array(getattr(part.limits, order))
                        for order in orders}
        # Divided differences where a curve is smooth; a ramp changes its velocity at once, by the longer of two ticks.
        self._mean = np.mean if part.limits.jerk is not None else max
        self.restart()

    def restart(self) -> None:
        """Forget the last commands."""
        self._before: np.ndarray | None = None
        self._changes: list[tuple[np.ndarray, float, float]] = []

    def check(self, values: np.ndarray, elapsed: float) -> list[str]:
        """Name the bounds that the next command violates."""
        values = values[self._place]
        if self._part.kind == 'ee_delta':
            values = values / self._period
        wrong = self._outside(values)
        if self._before is None:
            self._before = values
            return wrong
        if elapsed <= 0:
            return wrong + ([] if np.array_equal(values, self._before) else [f'{self.name}: change in no time'])
        return wrong + self._too_fast(values, min(elapsed, self._period))

    def _outside(self, values: np.ndarray) -> list[str]:
        limits, part = self._part.limits, self._part
        scale = 1 / self._period if part.kind == 'ee_delta' else 1.0
        slack = SLACK * (1 + np.abs(values))
        wrong = []
        if limits.min is not None and part.kind not in RATES:
            low, high = np.array(limits.min) - slack, np.array(limits.max) + slack
            wrong += [f'{part.name}: position'] * bool(((values < low) | (values > high))[self._rest].any())
        if part.kind == 'ee_pose' and limits.workspace_min is not None:
            axes = [index for index in self._rest if part.names[index] in 'xyz']
            box = np.array([limits.workspace_min, limits.workspace_max])[:, ['xyz'.index(part.names[i]) for i in axes]]
            wrong += [f'{part.name}: workspace'] * bool(
                ((values[axes] < box[0] - slack[axes]) | (values[axes] > box[1] + slack[axes])).any())
        if part.kind in RATES and limits.velocity is not None:
            wrong += [f'{part.name}: velocity'] * bool(
                (np.abs(values) > np.array(limits.velocity) + slack * scale).any())
        return wrong

    def _too_fast(self, values: np.ndarray, elapsed: float) -> list[str]:
        """Differentiate as often as there are bounds, as far as there are commands."""
        size = max(np.abs(values).max(), np.abs(self._before).max(), 1e-3)
        self._changes = [*self._changes[-2:], (self._change(values), elapsed, size)]
        derivatives, spans, sizes = map(list, zip(*self._changes))
        rounding, wrong = HALF_BIT * max(sizes), []
        for number, (order, bound) in enumerate(self._bounds.items()):
            ends = range(number, len(spans))
            if not ends:
                break
            derivatives = [derivative / self._mean(spans[end - number:end + 1])
                           for derivative, end in zip(derivatives, ends)]
            rounding *= 2 / min(spans)
            if bound is not None and self._exceeds(derivatives[-1], bound * (1 + SLACK) + rounding):
                wrong.append(f'{self.name}: {order}')
            derivatives = [after - before for before, after in zip(derivatives, derivatives[1:])]
        self._before = values
        return wrong

    def _change(self, values: np.ndarray) -> np.ndarray:
        change = values - self._before
        if self._turn.size:
            start, end = (rotations.from_vector(vectors[self._turn]) for vectors in (self._before, values))
            change[self._turn] = rotations.between(start, end)
        return change

    def _exceeds(self, derivative: np.ndarray, allowed: np.ndarray) -> bool:
        if self._turn.size and np.linalg.norm(derivative[self._turn]) > allowed[self._turn].min():
            return True
        return bool((np.abs(derivative) > allowed)[self._rest].any())
