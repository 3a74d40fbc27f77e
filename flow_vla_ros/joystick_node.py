"""Lets a person drive the robot, and say when episodes begin and end, with a joystick."""

from __future__ import annotations

import time

from sensor_msgs.msg import Joy

from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.teleoperation import Function, Jog, JoystickSettings, Pad, load_settings
from flow_vla_ros import qos
from flow_vla_ros.diagnostics import wall_clock
from flow_vla_ros.lifecycle import FlowLifecycleNode, Parameter, Parameters, run
from flow_vla_ros.teleop_desk import TeleopDesk
from flow_vla_ros.teleop_drive import ChunkOutlet, JogDrive

__all__ = ['JoystickNode', 'main']


class JoystickNode(FlowLifecycleNode):
    """Turns sensor_msgs/Joy into chunks, while the dead-man button is held, and into calls of recorder and executor.

    The first chunk takes over from the policy; the person keeps control until the button for it hands back. When the
    dead-man button is released, or the joystick is lost, the robot is brought to rest, and both have to be seen anew.
    """

    PARAMETERS = (
        Parameter('contract', 'metaworld', 'robot contract: a file, or a name in config/robots'),
        Parameter('bindings', '', 'what sticks and buttons do: a file, or a name in config/teleop; empty: the usual'),
        Parameter('rate', 20.0, 'of chunks, Hz', minimum=5.0, maximum=100.0),
        Parameter('instruction', '', 'words that are put in force at the start; empty: those on their topic'),
        Parameter('task', '', 'label of the episodes'),
    )

    def on_setup(self, parameters: Parameters) -> None:
        """Load contract and bindings and open the topics."""
        contract = RobotContract.load(find_contract(parameters.contract))
        settings = load_settings(JoystickSettings, parameters.bindings)
        self._pad = Pad(contract, settings)
        self._instruction, self._rate = parameters.instruction, parameters.rate
        self._drive = JogDrive(self, contract, Jog(contract, settings.jog), ChunkOutlet(self, contract))
        self._desk = TeleopDesk(self, contract, parameters.task, self._say, self._let_go)
        self._complaint = ''
        self.create_subscription(Joy, 'joy', self._on_joy, qos.SENSOR)
        for stick in self._pad.sticks:
            self.get_logger().debug(f'{stick}')

    def on_start(self) -> None:
        """Begin to listen."""
        self._pad.rearm()
        if self._instruction:
            self._desk.instruct(self._instruction)
        self._timer = self.create_timer(1 / self._rate, self._tick, clock=wall_clock())

    def on_stop(self) -> None:
        """Send nothing more; without chunks the executor brings the robot to rest."""
        self.destroy_timer(self._timer)
        self._drive.abandon()

    def _on_joy(self, message: Joy) -> None:
        if self.active:
            for function in self._pad.read(message.axes, message.buttons, time.monotonic()).asked:
                self._do(function)

    def _tick(self) -> None:
        self._desk.look_after()
        reading = self._pad.at(time.monotonic())
        complaint = self._drive.drive(reading.deflections) if reading.driving else ''
        if not reading.driving:
            self._drive.rest()
        if complaint and complaint != self._complaint:
            self.get_logger().warning(f'cannot drive: {complaint}')
        self._complaint = complaint

    def _do(self, function: Function) -> None:
        if function in (Function.FASTER, Function.SLOWER):
            self._say(f'speed {self._drive.jog.faster(function == Function.FASTER):.0%}')
        elif function == Function.BANK:
            self._say(f'bank {self._pad.bank + 1} of {self._pad.banks}')
        elif function == Function.TAKE_OVER and not self._desk.has_leader:
            self._complaint = self._drive.drive({})
        else:
            if function in (Function.RELEASE, Function.ESTOP):
                self._let_go()
            self._desk.ask(function)

    def _let_go(self) -> None:
        """Send nothing until the dead-man button is pressed anew."""
        self._pad.rearm()
        self._drive.abandon()

    def _say(self, line: str) -> None:
        self.get_logger().info(line)


def main() -> None:
    """Run the node."""
    run(JoystickNode)


if __name__ == '__main__':
    main()
