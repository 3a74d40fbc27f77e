"""How much noise is in a chunk at a time: discrete schedules of diffusion, and the variance-preserving SDE."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
import math

import torch
from torch import Tensor, nn

from flow_vla_core.errors import ConfigError, closest

__all__ = ['SCHEDULES', 'NoiseSchedule', 'VariancePreserving', 'cosine_betas', 'linear_betas']

MOST = 0.999  # of a beta: a step that takes all of the signal away could not be undone


def linear_betas(count: int) -> Tensor:
    """Return betas from 0.1 / K to 20 / K: (K,) float64.

    For K = 1000 they are those of DDPM (arXiv 2006.11239); for any other K the noise at the end is about the same.

    Example:
        >>> linear_betas(1000)[[0, -1]]
        tensor([0.0001, 0.0200], dtype=torch.float64)
    """
    return (torch.linspace(0.1, 20, count, dtype=torch.float64) / count).clamp(max=MOST)


def cosine_betas(count: int) -> Tensor:
    """Return betas with which the signal's share falls as ``cos^2(pi / 2 (k / K + 0.008) / 1.008)``: (K,) float64.

    Nichol and Dhariwal, arXiv 2102.09672, equation 17; the schedule of Diffusion Policy.

    Example:
        >>> cosine_betas(4)
        tensor([0.1530, 0.4170, 0.7079, 0.9990], dtype=torch.float64)
    """
    places = torch.linspace(0, 1, count + 1, dtype=torch.float64)
    left = torch.cos(math.pi / 2 * (places + 0.008) / 1.008).square()
    return (1 - left[1:] / left[:-1]).clamp(max=MOST)


SCHEDULES: Mapping[str, Callable[[int], Tensor]] = {'cosine': cosine_betas, 'linear': linear_betas}


class NoiseSchedule(nn.Module):
    """Adds noise in K discrete steps: ``x_k = sqrt(a_k) actions + sqrt(1 - a_k) noise, a_k = prod_(j <= k) (1 - b_j)``.

    DDPM, arXiv 2006.11239, equation 4. There k runs from data to noise; networks get ``t = 1 - (k + 1) / K``, which is
    0 for the last step K - 1 and 1 for clean data.

    Args:
        name: one of `SCHEDULES`.
        count: number of steps K.

    Raises:
        ConfigError: for an unknown name or fewer than two steps.

    Example:
        >>> schedule = NoiseSchedule('cosine', 100)
        >>> round(schedule.levels[0], 4), schedule.visit(4)
        (0.9994, (99, 74, 49, 24))
    """

    def __init__(self, name: str = 'cosine', count: int = 100) -> None:
        super().__init__()
        if name not in SCHEDULES:
            raise ConfigError(f'generator.schedule: {name!r}; {closest(name, SCHEDULES)}')
        if count < 2:
            raise ConfigError(f'generator.training_steps: {count}; allowed: 2 or more')
        level = torch.cumprod(1 - SCHEDULES[name](count), 0)
        self.register_buffer('level', level, persistent=False)
        self.levels = tuple(level.tolist())

    def __len__(self) -> int:
        return len(self.levels)

    def time(self, step: Tensor | int) -> Tensor | float:
        """Return the flow time t of step k, of the same shape."""
        return 1 - (step + 1) / len(self)

    def parts(self, step: Tensor) -> tuple[Tensor, Tensor]:
        """Return the shares of signal and noise, ``sqrt(a_k)`` and ``sqrt(1 - a_k)``, of steps k (B,): (B, 1, 1)."""
        level = self.level[step][:, None, None]
        return level.sqrt(), (1 - level).sqrt()

    def visit(self, steps: int) -> tuple[int, ...]:
        """Choose evenly spaced steps k for sampling, the noisiest, K - 1, first.

        The "trailing" choice of arXiv 2305.08891, which begins where samples begin: at pure noise.

        Raises:
            ConfigError: for more steps than there are.
        """
        if steps > len(self):
            raise ConfigError(f'steps: {steps}; allowed: at most {len(self)}, the steps of the training')
        return tuple(round(len(self) * (steps - index) / steps) - 1 for index in range(steps))


@dataclass(frozen=True)
class VariancePreserving:
    """Mixes ``x_t = signal(t) actions + noise(t) eps`` with ``signal^2 + noise^2 = 1`` in continuous time.

    Its SDE from data to noise is ``dx = -b/2 x ds + sqrt(b) dw`` with ``b = first + s (last - first)``, in which the
    paper's time is ``s = 1 - t`` (Song et al., arXiv 2011.13456, equations 32 and 33).

    Args:
        first: rate b at the data, above 0.
        last: rate b at the noise, above ``first``.

    Raises:
        ConfigError: for rates that are not 0 < first < last.

    Example:
        >>> schedule, t = VariancePreserving(), torch.tensor([0.0, 0.5, 1.0])
        >>> schedule.signal(t), schedule.noise(t)
        (tensor([0.0066, 0.2812, 1.0000]), tensor([1.0000, 0.9597, 0.0000]))
    """

    first: float = 0.1
    last: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.first < self.last:
            raise ConfigError(f'rates of noise from {self.first} to {self.last}; allowed: 0 < first < last')

    def rate(self, t: Tensor) -> Tensor:
        """Return the rate b at t, of the same shape."""
        return self.first + (1 - t) * (self.last - self.first)

    def signal(self, t: Tensor) -> Tensor:
        """Return the share of the data at t, of the same shape."""
        return self._log_signal(t).exp()

    def noise(self, t: Tensor) -> Tensor:
        """Return the share of the noise at t, of the same shape."""
        return (-torch.expm1(2 * self._log_signal(t))).sqrt()

    def angle(self, t: float) -> float:
        """Return the angle whose sine is the share of the data and whose cosine is that of the noise, rad."""
        return math.asin(self.signal(torch.tensor(t, dtype=torch.float64)).item())

    def time(self, angle: float) -> float:
        """Return the t of an angle from ``angle(0)`` to pi / 2."""
        decay, change = -math.log(min(math.sin(angle), 1)), self.last - self.first
        return 1 - 4 * decay / (self.first + math.sqrt(self.first ** 2 + 4 * change * decay))

    def _log_signal(self, t: Tensor) -> Tensor:
        s = 1 - t
        return -s * (self.first + s * (self.last - self.first) / 2) / 2
