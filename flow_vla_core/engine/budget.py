"""How many steps a chunk may take."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
import statistics

from flow_vla_core.errors import ConfigError

__all__ = ['Budget']


class Budget:
    """Chooses as many steps as fit into a time: a chunk of k steps is taken to last ``r (a + b k)``.

    The fixed cost a (encoders, copies) and that of a step b are medians of chunks of 1 and of the most steps, measured
    before the first chunk. The factor r is the median, over the last calls, of what a chunk took by what it should
    have: it follows a machine that gets busy or hot.

    Args:
        seconds: for a whole chunk, above 0; None for no limit.
        most: steps that are never exceeded.
        window: number of calls that r looks back on.

    Raises:
        ConfigError: for a time that is not above 0.

    Example:
        >>> budget = Budget(0.020, most=10)
        >>> budget.calibrate({1: [0.006], 10: [0.024]})
        >>> budget.steps()
        8
        >>> budget.note(8, 0.040)
        >>> budget.steps()
        3
    """

    def __init__(self, seconds: float | None, most: int, window: int = 9) -> None:
        if seconds is not None and not seconds > 0:
            raise ConfigError(f'budget: {seconds} s; allowed: above 0, or none')
        self.seconds, self.most = seconds, most
        self._cost: Callable[[int], float] | None = None
        self._ratios: deque[float] = deque([1.0], maxlen=window)

    def choices(self) -> tuple[int, ...]:
        """Return the numbers of steps that a chunk may get."""
        return (self.most,) if self.seconds is None else tuple(range(1, self.most + 1))

    def calibrate(self, times: dict[int, list[float]]) -> None:
        """Take over what chunks lasted, s, by their number of steps; without a limit nothing is needed."""
        if self.seconds is None:
            return
        least, most = (statistics.median(times[steps]) for steps in (1, self.most))
        each = max(most - least, 0) / max(self.most - 1, 1)
        self._cost = lambda steps: least + each * (steps - 1)

    def note(self, steps: int, seconds: float) -> None:
        """Hear what a chunk lasted."""
        if self._cost is not None:
            if len(self._ratios) == 1 and self._ratios[0] == 1.0:
                self._ratios.clear()
            self._ratios.append(seconds / self._cost(steps))

    def steps(self) -> int:
        """Return how many steps the next chunk takes, at least 1."""
        if self.seconds is None or self._cost is None:
            return self.most
        allowed = self.seconds / statistics.median(self._ratios)
        return max([steps for steps in range(1, self.most + 1) if self._cost(steps) <= allowed], default=1)
