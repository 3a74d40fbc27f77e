"""Runs the demo with the scripted expert in the policy's place; tests start it as a process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
import sys

from flow_vla_ros import demo, evaluate

__all__ = ['ExpertGraph']


class ExpertGraph(evaluate.Graph):
    """Puts the expert into the policy's place."""

    def specs(self):
        return [replace(spec, module='expert_policy') if spec.name == 'policy' else spec for spec in super().specs()]


if __name__ == '__main__':
    demo.Graph, demo.checkpoint_folder = ExpertGraph, lambda given, robot: Path('expert')
    out, tasks = sys.argv[1:]
    demo.demo(out=Path(out), contract='metaworld', tasks=tasks, episodes=1, seed=500_000, seconds=120.0)
