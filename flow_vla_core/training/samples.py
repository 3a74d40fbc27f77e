"""A picture of what a policy does in held-out moments, beside what was done."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from flow_vla_core.policy import FlowVLA
from flow_vla_core.training.feeder import Feeder

__all__ = ['plot_samples']

DRAWS = 8  # chunks for each moment


def plot_samples(path: Path, policy: FlowVLA, feeder: Feeder, indices: Tensor,
                 device: torch.device | str = 'cpu') -> None:
    """Draw a row for each window: the newest image of the first camera, and each action over the chunk.

    Args:
        path: of the picture.
        policy: makes the chunks, always from the same noise.
        feeder: of held-out windows.
        indices: (B,) their numbers.
        device: where the policy is.
    """
    from matplotlib.figure import Figure
    batch, actions, mask = feeder.batch(indices)
    generator = torch.Generator().manual_seed(0)
    made = torch.stack([policy.sample(batch.to(device), generator=generator).cpu() for _ in range(DRAWS)], -1).numpy()
    done = actions.masked_fill(~mask[..., None], torch.nan).numpy()
    names = [f'{part.name} {name}' for part in policy.contract.actions for name in part.names]
    figure = Figure(figsize=(2 + 1.6 * len(names), 0.4 + 1.7 * len(indices)))
    rows = figure.subplots(len(indices), 1 + len(names), squeeze=False, sharey='col')
    figure.subplots_adjust(left=0.01, right=0.99, top=1 - 0.3 / figure.get_figheight(),
                           bottom=0.5 / figure.get_figheight(), wspace=0.35, hspace=0.3)
    image = next(iter(batch.images.values()))[:, -1].permute(0, 2, 3, 1).numpy()
    for row, axes in enumerate(rows):
        axes[0].imshow(image[row].squeeze(), cmap='gray')
        axes[0].axis('off')
        text = feeder.windows.episodes[feeder.windows.episode_of[indices[row]]].instruction
        axes[0].set_title(text, fontsize=7, wrap=True)
        for place, (axis, name) in enumerate(zip(axes[1:], names)):
            axis.plot(made[row, :, place], color='C0', alpha=0.4, linewidth=0.8)
            axis.plot(done[row, :, place], color='k', linewidth=1.6, marker='.')
            axis.tick_params(labelsize=6)
            axis.locator_params(nbins=4)
            if row == 0:
                axis.set_title(name, fontsize=7)
    figure.legend(handles=[rows[0, 1].lines[-1], rows[0, 1].lines[0]], labels=['was done', 'is made'], fontsize=7,
                  loc='lower right', ncols=2, frameon=False)
    figure.savefig(path, dpi=110)
