"""What the policy node does, as its status and its line on ``/diagnostics``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import math

from flow_vla.msg import PolicyStatus
from flow_vla_core.errors import Code
from flow_vla_ros.checkpoint_switch import CheckpointSwitch
from flow_vla_ros.observation_bridge import ObservationBridge

__all__ = ['PolicyReport']


class PolicyReport:
    """Keeps why the policy does not act, and how its last chunk came.

    Args:
        bridge: knows the streams and the instruction.
        switch: knows the checkpoint in force, and what was refused.
        remarks: returns what is said before everything else.
        budget: time for a chunk, s; 0 for no limit.
    """

    def __init__(self, bridge: ObservationBridge, switch: CheckpointSwitch, remarks: Callable[[], Sequence[str]],
                 budget: float) -> None:
        self._bridge, self._switch, self._remarks, self._budget = bridge, switch, remarks, budget
        self.clear()

    def clear(self) -> None:
        """Begin to count anew."""
        self._code, self._message = Code.STREAM_MISSING, 'nothing received yet'
        self._chunks, self._delay = 0, 0
        self._generation_ms, self._confidence = 0.0, math.nan
        self.short = False

    @property
    def generation_ms(self) -> float:
        """What the last chunk took, ms."""
        return self._generation_ms

    def note(self, code: Code, message: str) -> bool:
        """Note why there is no chunk, ``OK`` if there is; tell whether the code is another than before."""
        changed = code != self._code
        self._code, self._message = code, message
        return changed

    def publish(self, took: int, confidence: float, delay: int) -> None:
        """Note a chunk that was sent: the time that it took, ns, and its delay in policy steps."""
        self._chunks += 1
        self._generation_ms, self._confidence, self._delay = took * 1e-6, confidence, delay

    def status(self, active: bool) -> PolicyStatus:
        """Build the status, without a stamp."""
        ages, rates = self._bridge.ages(), self._bridge.rates()
        state = PolicyStatus.RUNNING if self._code == Code.OK else PolicyStatus.WAITING
        return PolicyStatus(
            state=state if active else PolicyStatus.INACTIVE, code=self._code, message=self._loud_message(),
            checkpoint=self._switch.checkpoint, instruction=self._bridge.instruction or '', chunks=self._chunks,
            generation_ms=self._generation_ms, streams=list(ages), stream_age=list(ages.values()),
            stream_rate=[rates[name] for name in ages])

    def diagnostics(self) -> tuple[Code, str, dict[str, object]]:
        """Return the code, what it means, and numbers to look at."""
        ages, rates = self._bridge.ages(), self._bridge.rates()
        return self._code, self._loud_message(), {
            'checkpoint': self._switch.checkpoint, 'instruction': self._bridge.instruction or '',
            'chunks': self._chunks, 'generation': f'{self._generation_ms:.1f} ms',
            'delay': f'{self._delay} policy steps', 'confidence': f'{self._confidence:.2f}',
            **{f'{name}: age, rate': f'{age:.3f} s, {rates[name]:.1f} Hz' for name, age in ages.items()}}

    def _loud_message(self) -> str:
        refusal = [f'{self._switch.refusal}.'] if self._switch.refusal else []
        return ' '.join(filter(None, (*self._remarks(), *refusal, self._message or self._facts())))

    def _facts(self) -> str:
        """Say how the last chunk came."""
        if not self._chunks:
            return ''
        words = [f'delay {self._delay} steps']
        if not math.isnan(self._confidence):
            words.append(f'confidence {self._confidence:.2f}')
        if self._budget:
            words.append(f'{self._generation_ms:.0f} of {1e3 * self._budget:.0f} ms')
        if self.short:
            words.append('the plan is too short to bridge the delay')
        return ', '.join(words)
