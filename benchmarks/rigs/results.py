"""What the benchmarks of nodes end with: figures as JSON, and distributions in few numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from flow_vla_core.evaluation.report import Machine, git_state

__all__ = ['finish', 'spread']


def finish(values: Mapping[str, Any], path: Path | None) -> None:
    """Print figures as JSON, with load, commit and machine, and write them to a file; None writes nothing."""
    found = {**values, 'load': round(os.getloadavg()[0], 2), 'git_commit': git_state()[0],
             'machine': asdict(Machine.here())}
    Console().print_json(data=found)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=2) + '\n')


def spread(values: Sequence[float]) -> dict[str, float | int | None]:
    """Return count, median, 99th percentile and maximum; None stands for those of nothing."""
    if not len(values):
        return {'count': 0, 'median': None, 'p99': None, 'max': None}
    return {'count': len(values), 'median': float(np.median(values)), 'p99': float(np.quantile(values, 0.99)),
            'max': float(np.max(values))}
