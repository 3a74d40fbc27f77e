"""Puts a simulated robot on the graph: cameras, state and clock out, commands in."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
import time

import numpy as np
from rosgraph_msgs.msg import Clock as ClockMessage
from std_msgs.msg import Bool

from flow_vla.msg import SimulationState
from flow_vla.srv import ResetSimulation
from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.errors import FlowVLAError
from flow_vla_core.simulation.noise import ExecutionNoise
from flow_vla_core.simulation.rendering import Scene
from flow_vla_core.simulation.robots import kind_of, make_robot
from flow_vla_ros import codecs, qos
from flow_vla_ros.diagnostics import wall_clock
from flow_vla_ros.lifecycle import FlowLifecycleNode, Parameter, Parameters, run
from flow_vla_ros.sim.plumbing import CommandInbox, SensorOutbox

__all__ = ['SimNode', 'main']

CLOCK_PERIOD = 0.1  # s; in lockstep time stands still between steps, and is told again for those who come late


class SimNode(FlowLifecycleNode):
    """Simulates a robot: one simulation step for each control period, whose time goes out on ``/clock``.

    By default a timer makes the steps, at ``real_time_factor`` times real time; those that are late are made up for.
    State goes out with each of them. Each policy step is rendered by a thread of its own while the robot moves on, as a
    real camera would deliver it. A velocity whose command
    is older than ``command_timeout`` is replaced by rest. With ``lockstep`` a policy step is made as soon as every
    part's command for the present time has come, and never before, so that nothing depends on the machine's speed.
    """

    PARAMETERS = (
        Parameter('contract', 'metaworld', 'robot contract: a file, or a name in config/robots'),
        Parameter('task', '', "task of the first scene; empty: the robot's first"),
        Parameter('seed', 0, 'seed of the first scene', minimum=0),
        Parameter('execution_noise', 0.0, 'disturbance of what is executed', minimum=0.0, maximum=1.0),
        Parameter('real_time_factor', 1.0, 'simulated seconds per second', minimum=0.01, maximum=100.0),
        Parameter('lockstep', False, 'step on commands and not by time'),
        Parameter('command_timeout', 0.25, 'simulated s after which a velocity is not executed', minimum=0.0),
    )

    def on_setup(self, parameters: Parameters) -> None:
        """Build the robot and open the topics."""
        self._contract = RobotContract.load(find_contract(parameters['contract']))
        noise = parameters['execution_noise']
        self._robot = make_robot(self._contract, ExecutionNoise(noise) if noise > 0 else None)
        self._robot.reset(parameters['task'] or next(iter(kind_of(self._contract).tasks)), parameters['seed'])
        self._seed = parameters['seed']
        self._lockstep = parameters['lockstep']
        self._timeout = round(parameters['command_timeout'] * 1e9)
        self._period = self._robot.control_period / parameters['real_time_factor']
        self._periods = round(self._contract.rates.policy_dt / self._robot.control_period)
        self._done = 0  # control periods since the last policy step
        self._time = time.time_ns()
        self._clock_publisher = self.create_publisher(ClockMessage, '/clock', qos.CLOCK)
        self._state_publisher = self.create_publisher(SimulationState, '~/state', qos.LATCHED_STATE)
        self._success_publisher = self.create_publisher(Bool, '~/success', qos.STATE)
        self._painter = ThreadPoolExecutor(1, 'cameras')  # a graphics context belongs to one thread
        self._painted: Future = self._painter.submit(lambda: None)
        fields = {camera.name: self._robot.field_of_view(camera.name) for camera in self._contract.cameras}
        self._sensors = SensorOutbox(self, self._contract, fields)
        self._commands = CommandInbox(self, self._contract, self._on_command, lambda: self._time)
        self.create_service(ResetSimulation, '~/reset', self._on_reset)

    def on_start(self) -> None:
        """Publish the first observation and begin to step."""
        self._publish()
        self._painted.result()  # refuses to start where nothing can be rendered
        self._started, self._made = time.monotonic(), 0
        period, callback = (CLOCK_PERIOD, self._publish_clock) if self._lockstep else (self._period, self._catch_up)
        self._timer = self.create_timer(period, callback, clock=wall_clock())

    def on_stop(self) -> None:
        """Stop stepping."""
        self.destroy_timer(self._timer)
        self._painted.result()

    def on_teardown(self) -> None:
        """Free the renderer."""
        self._painter.submit(self._robot.close).result()
        self._painter.shutdown()

    def _on_command(self) -> None:
        if self._lockstep and self.active and self._commands.stamp() >= self._time:
            action = self._action()
            for _ in range(self._periods):
                self._robot.step(action)
            self._time += self._contract.rates.policy_dt_ns
            self._publish()

    def _on_reset(self, request: ResetSimulation.Request,
                  response: ResetSimulation.Response) -> ResetSimulation.Response:
        self._painted.result()  # a reset changes the model that is rendered
        try:
            self._robot.reset(request.task or self._robot.task, request.seed)
        except FlowVLAError as error:
            response.success, response.message = False, str(error)
            return response
        self._seed = request.seed
        self._commands.clear()
        self._done = 0
        self._time += self._contract.rates.policy_dt_ns
        if self.active:
            self._publish()
        response.success, response.task, response.instruction = True, self._robot.task, self._robot.instruction
        return response

    def _catch_up(self) -> None:
        """Make the steps that are due by the wall clock, one policy step of them at most; the rest is let go."""
        due = int((time.monotonic() - self._started) / self._period) - self._made
        for _ in range(min(due, self._periods)):
            self._advance()
        self._made += due

    def _advance(self) -> None:
        self._robot.step(self._action())
        self._time += round(self._robot.control_period * 1e9)
        self._done = (self._done + 1) % self._periods
        if self._done == 0:
            self._publish()
        else:
            self._publish_clock()
            self._sensors.publish_state(self._robot.state(), self._time)

    def _action(self) -> np.ndarray:
        action = self._commands.action(self._robot.rest)
        if not self._lockstep and self._time - self._commands.stamp() > self._timeout:
            for part, place in zip(self._contract.actions, self._contract.action_slices.values()):
                if part.kind in ('ee_twist', 'joint_velocity'):
                    action[place] = 0
        return action

    def _publish(self) -> None:
        self._publish_clock()
        self._sensors.publish_state(self._robot.state(), self._time)
        state = SimulationState(task=self._robot.task, seed=self._seed, steps=self._robot.steps,
                                success=self._robot.success, observation=self._robot.privileged_state)
        state.header.stamp = codecs.to_time(self._time)
        self._state_publisher.publish(state)
        self._success_publisher.publish(Bool(data=self._robot.success))
        self._painted.result()  # where cameras are too slow, time waits for them
        self._painted = self._painter.submit(self._paint, self._robot.snapshot(), self._time)

    def _paint(self, scene: Scene, stamp: int) -> None:
        self._sensors.publish_images(self._robot.render(scene), stamp)

    def _publish_clock(self) -> None:
        self._clock_publisher.publish(ClockMessage(clock=codecs.to_time(self._time)))


def main() -> None:
    """Run the node."""
    run(SimNode)


if __name__ == '__main__':
    main()
