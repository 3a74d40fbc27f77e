"""Where contracts lie, and how their files are read."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
import sys
from typing import Any

import yaml

from flow_vla_core.errors import ContractError, closest

__all__ = ['config_folder', 'find_contract', 'read_yaml']


def find_contract(name: str | Path) -> Path:
    """Return the file of a contract, given its path or the name of one in ``config/robots``."""
    if Path(name).suffix in ('.yaml', '.yml'):
        return Path(name)
    robots = config_folder() / 'robots'
    path = robots / f'{name}.yaml'
    if not path.is_file():
        raise ContractError(f'no contract {str(name)!r} in {robots}; '
                            f'{closest(str(name), [p.stem for p in robots.glob("*.yaml")])}')
    return path


def config_folder() -> Path:
    """Return the folder ``config`` of the source tree or of the installed share folder."""
    source = Path(__file__).resolve().parents[2] / 'config'
    if source.is_dir():
        return source
    for parent in (*Path(__file__).resolve().parents, Path(sys.prefix)):
        if (found := parent / 'share' / 'flow_vla' / 'config').is_dir():
            return found
    raise ContractError('the folder config of flow_vla is not installed')


def read_yaml(path: str | Path) -> Any:
    """Read a YAML file in which no key may stand twice. Raise `ContractError`, which names the file, if it can't."""
    try:
        return yaml.load(Path(path).read_text(), _StrictLoader)
    except OSError as error:
        raise ContractError(f'{path}: {error.strerror}') from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ContractError(f'{path}: not valid YAML: {error}') from error


class _StrictLoader(yaml.SafeLoader):
    """Refuses a mapping in which a key stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        for key, count in Counter(map(str, keys)).items():
            if count > 1:
                raise yaml.YAMLError(f'line {node.start_mark.line + 1}: key {key!r} stands {count} times')
        return super().construct_mapping(node, deep)
