"""Exchange with LeRobotDataset v3: bags to a dataset, and any dataset to bags; lerobot itself is not needed."""

from flow_vla_core.data.lerobot.from_bags import export_bags, export_episodes
from flow_vla_core.data.lerobot.reader import Dataset
from flow_vla_core.data.lerobot.to_bags import contract_of, import_dataset
from flow_vla_core.data.lerobot.writer import IMAGE_FORMS, SIZES, ExportOptions, Limits

__all__ = ['IMAGE_FORMS', 'SIZES', 'Dataset', 'ExportOptions', 'Limits', 'contract_of', 'export_bags',
           'export_episodes', 'import_dataset']
