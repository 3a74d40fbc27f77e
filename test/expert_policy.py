"""A stand-in for the policy node whose plans come from the scripted expert; tests run it as a process."""

from __future__ import annotations

import numpy as np
from std_msgs.msg import String

from flow_vla.msg import ActionChunk as ChunkMessage
from flow_vla.msg import PolicyStatus, SimulationState
from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.errors import Code
from flow_vla_core.simulation.robots import make_expert, tasks_of
from flow_vla_core.types import ActionChunk
from flow_vla_ros import codecs, qos
from flow_vla_ros.lifecycle import FlowLifecycleNode, Parameter, Parameters, run
from flow_vla_ros.trace import Trace

HORIZON = 8


class ExpertPolicyNode(FlowLifecycleNode):
    """Publishes one chunk for each state of the simulator, while the instruction names a task."""

    PARAMETERS = (
        Parameter('contract', 'metaworld', 'robot contract'),
        Parameter('checkpoint', '', 'not used'),
        Parameter('device', '', 'not used'),
        Parameter('steps', 0, 'not used'),
        Parameter('seed', 0, 'not used'),
        Parameter('replan_steps', 1, 'not used'),
        Parameter('blank_images', False, 'not used'),
        Parameter('allow_empty_instruction', False, 'stay at rest for an empty instruction instead of refusing it'),
        Parameter('trace_file', '', 'CSV file with one row for each chunk'),
    )

    def on_setup(self, parameters: Parameters):
        self._contract = RobotContract.load(find_contract(parameters.contract))
        self._allow_empty = parameters.allow_empty_instruction
        self._instruction, self._count = '', 0
        self._experts = {text: make_expert(self._contract, task) for task, text in tasks_of(self._contract).items()}
        self._trace = Trace(parameters.trace_file, ['stamp', 'generation_ms'])
        self._chunks = self.create_publisher(ChunkMessage, 'action_chunk', qos.CHUNK)
        self._status = self.create_publisher(PolicyStatus, '~/status', qos.STATUS)
        self.create_subscription(String, self._contract.instruction.topic, self._on_instruction, qos.LATCHED)
        self.create_subscription(SimulationState, 'sim/state', self._on_state, qos.STATE)

    def on_stop(self):
        self._trace.flush()

    def _on_instruction(self, message: String):
        self._instruction = message.data

    def _on_state(self, state: SimulationState):
        if not self.active:
            return
        expert = self._experts.get(self._instruction)
        if expert is None and not (self._allow_empty and not self._instruction):
            self._status.publish(PolicyStatus(state=PolicyStatus.WAITING, code=Code.INSTRUCTION_UNKNOWN,
                                              instruction=self._instruction,
                                              message=f'unknown words in {self._instruction!r}'))
            return
        action = np.zeros(4, np.float32) if expert is None else expert(np.asarray(state.observation))
        self._count += 1
        stamp = codecs.from_time(state.header.stamp)
        chunk = ActionChunk(stamp, self._contract.rates.policy_dt_ns, np.repeat(action[None], HORIZON, 0), self._count,
                            self._instruction)
        self._chunks.publish(codecs.chunk_to_message(chunk, self._contract))
        self._trace.write([stamp, 1.5])


if __name__ == '__main__':
    run(ExpertPolicyNode)
