"""Flow, diffusion and vision-language-action policies, their data and their training; free of ROS."""

__version__ = '0.1.0'
