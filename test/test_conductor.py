"""How a conductor waits for nodes that take their time."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')

from flow_vla_core.errors import FlowVLAError
from flow_vla_ros import conductor


class _Asked:
    """Stands for the answer of a service."""

    def __init__(self, state: int | None) -> None:
        self.state = state

    def done(self) -> bool:
        """Tell whether there is one."""
        return self.state is not None

    def result(self) -> object:
        """Return it."""
        return SimpleNamespace(current_state=SimpleNamespace(id=self.state))


@pytest.mark.parametrize('states, ready', [((None, None, 2, 3), True), ((None,) * 1000, False)],
                         ids=['slow', 'never'])
def test_a_node_that_is_being_set_up_is_asked_again(states: tuple[int | None, ...], ready: bool,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conductor, 'ANSWER_SECONDS', 0.01)
    monkeypatch.setattr(conductor, 'SERVICE_SECONDS', 0.02)
    monkeypatch.setattr(conductor, 'DRIVERS', ('policy',))
    made = object.__new__(conductor.Conductor)
    answers = iter(states)
    made._get = {'policy': SimpleNamespace(service_is_ready=lambda: True, srv_name='policy/get_state')}
    made._send = lambda client, request: _Asked(next(answers))
    made._state, made._changed, made._check = object(), threading.Condition(), lambda: None
    if ready:
        made.wait_until_ready(20.0)
    else:
        with pytest.raises(FlowVLAError, match='in vain for policy to become active'):
            made.wait_until_ready(0.3)
