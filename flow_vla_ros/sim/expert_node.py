"""Drives the simulated robot with the task's scripted expert, through the topics that a policy would use."""

from __future__ import annotations

import numpy as np
from std_srvs.srv import SetBool

from flow_vla.msg import SimulationState
from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.simulation.robots import Expert, make_expert
from flow_vla_ros import codecs, qos
from flow_vla_ros.command_bridge import CommandBridge
from flow_vla_ros.lifecycle import FlowLifecycleNode, Parameter, Parameters, run

__all__ = ['ExpertNode', 'main']


class ExpertNode(FlowLifecycleNode):
    """Answers each state of the simulator with the expert's command, stamped with that state's time.

    It is silent until `~/enable` is called, and again once success has held for ``hold_steps``, so that a simulator
    in lockstep comes to rest there.
    """

    PARAMETERS = (
        Parameter('contract', 'metaworld', 'robot contract: a file, or a name in config/robots'),
        Parameter('state_topic', 'sim/state', 'where the simulator publishes what only it knows'),
        Parameter('hold_steps', 8, 'states with success after which the expert is silent', minimum=1),
    )

    def on_setup(self, parameters: Parameters) -> None:
        """Load the contract and open the topics."""
        self._contract = RobotContract.load(find_contract(parameters['contract']))
        self._hold_steps = parameters['hold_steps']
        self._experts: dict[str, Expert] = {}
        self._latest: SimulationState | None = None
        self._answered = -1
        self._enabled = False
        self._held = 0
        self._commands = CommandBridge(self, self._contract)
        self.create_subscription(SimulationState, parameters['state_topic'], self._on_state, qos.LATCHED_STATE)
        self.create_service(SetBool, '~/enable', self._on_enable)

    def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self._enabled, self._held = request.data, 0
        response.success, response.message = True, 'driving' if request.data else 'silent'
        self._act()
        return response

    def _on_state(self, state: SimulationState) -> None:
        self._latest = state
        self._held = self._held + 1 if state.success else 0
        self._act()

    def _act(self) -> None:
        state = self._latest
        if not self._enabled or state is None or self._held >= self._hold_steps:
            return
        stamp = codecs.from_time(state.header.stamp)
        if stamp == self._answered:
            return
        self._answered = stamp
        if state.task not in self._experts:
            self._experts[state.task] = make_expert(self._contract, state.task)
        self._commands.publish(self._experts[state.task](np.asarray(state.observation)), stamp)


def main() -> None:
    """Run the node."""
    run(ExpertNode)


if __name__ == '__main__':
    main()
