"""How bags are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flow_vla_core.errors import ConfigError

__all__ = ['ReadOptions']


@dataclass(frozen=True)
class ReadOptions:
    """Says how episodes are taken from a bag.

    Args:
        cut: where episodes begin and end. ``marks``: at our Episode messages, or, without any, as ``instruction``.
            ``instruction``: new words begin a new episode. ``whole``: the bag is one. Otherwise a topic: of a
            std_msgs/Bool, True begins and False ends one; any message of another type ends one and begins the next.
        instruction: the words of a bag in which there are none.
        actions: ``commands``, or ``state``: what the robot did ``lead`` steps later, from its state.
        lead: steps of the policy.
        threads: that decode images; 0 decodes them in the process's only one.

    Raises:
        ConfigError: if a value is out of range.

    Example:
        >>> ReadOptions(cut='whole', instruction='open the drawer').lead
        1
    """

    cut: str = 'marks'
    instruction: str = ''
    actions: Literal['commands', 'state'] = 'commands'
    lead: int = 1
    threads: int = 0

    def __post_init__(self) -> None:
        if self.actions not in ('commands', 'state'):
            raise ConfigError(f"actions {self.actions!r}; allowed: 'commands', 'state'")
        if self.lead < 1 or self.threads < 0:
            raise ConfigError(f'lead {self.lead}, threads {self.threads}: at least 1 and 0')
        if not self.cut:
            raise ConfigError("cut is empty; allowed: 'marks', 'instruction', 'whole', or a topic")
