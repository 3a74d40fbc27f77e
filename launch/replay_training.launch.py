"""Launches training while bags are played; with shadow:=true also a policy that watches and follows it."""

from launch import LaunchDescription

from flow_vla_ros.bringup import launch_description


def generate_launch_description() -> LaunchDescription:
    """Describe the nodes; ``ros2 launch flow_vla replay_training.launch.py --show-args`` lists the arguments."""
    return launch_description('replay_training')
