"""Launches the simulated robot: Meta-World behind the topics of a real one."""

from launch import LaunchDescription

from flow_vla_ros.bringup import launch_description


def generate_launch_description() -> LaunchDescription:
    """Describe the nodes; ``ros2 launch flow_vla sim.launch.py --show-args`` lists the arguments."""
    return launch_description('sim')
