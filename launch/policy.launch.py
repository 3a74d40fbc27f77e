"""Launches policy and executor, for a robot that runs already; by arguments also recorder and teleoperation."""

from launch import LaunchDescription

from flow_vla_ros.bringup import launch_description


def generate_launch_description() -> LaunchDescription:
    """Describe the nodes; ``ros2 launch flow_vla policy.launch.py --show-args`` lists the arguments."""
    return launch_description('policy')
