"""Launches a complete robot: simulation, policy and executor."""

from launch import LaunchDescription

from flow_vla_ros.bringup import launch_description


def generate_launch_description() -> LaunchDescription:
    """Describe the nodes; ``ros2 launch flow_vla bringup.launch.py --show-args`` lists the arguments."""
    return launch_description('bringup')
