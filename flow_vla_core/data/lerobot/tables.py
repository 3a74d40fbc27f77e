"""The parquet files of a LeRobotDataset: their columns, and how they are written and read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flow_vla_core.data.lerobot.schema import TASKS_FILE
from flow_vla_core.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ['decode_png', 'frame_schema', 'frame_table', 'read_rows', 'read_table', 'read_tasks', 'write_tasks']

INDEX = '__index_level_0__'  # how pandas calls an index without a name; lerobot looks tasks up by it


def frame_schema(features: Mapping[str, Mapping[str, Any]]) -> pa.Schema:
    """Return the columns of ``data/``: all features but videos, described for the package datasets as well."""
    import pyarrow as pa
    kept = {key: feature for key, feature in features.items() if feature['dtype'] != 'video'}
    described = {key: _describe(feature) for key, feature in kept.items()}
    return pa.schema([(key, _type(feature)) for key, feature in kept.items()],
                     {'huggingface': json.dumps({'info': {'features': described}})})


def frame_table(schema: pa.Schema, columns: Mapping[str, np.ndarray | Sequence[bytes]]) -> pa.Table:
    """Build a table out of vectors (N, D), numbers (N, 1) or (N,), and images as PNG."""
    import pyarrow as pa
    return pa.Table.from_arrays([_column(columns[entry.name], entry.type) for entry in schema], schema=schema)


def read_table(path: Path, columns: Sequence[str] | None = None, episode: int | None = None) -> pa.Table:
    """Read a parquet file, or the rows of one episode. Raise `DataError` if it can't be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    chosen = None if episode is None else [('episode_index', '=', episode)]
    try:
        return pq.ParquetFile(path).read() if chosen is None and columns is None else pq.read_table(
            path, columns=columns, filters=chosen, partitioning=None)
    except FileNotFoundError as error:
        raise DataError(f'{path}: no such file') from error
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise DataError(f'{path}: {error}') from error


def read_rows(path: Path, leave_out: str | None = None) -> list[dict[str, Any]]:
    """Read a parquet file as mappings, but for columns that begin with ``leave_out``. Raise `DataError` as above."""
    table = read_table(path)
    try:
        kept = [name for name in table.column_names if leave_out is None or not name.startswith(leave_out)]
        return table.select(kept).to_pylist()
    except ValueError as error:
        raise DataError(f'{path}: {error}') from error


def write_tasks(dataset: Path, tasks: Sequence[str]) -> None:
    """Write the instructions as pandas would write a frame with ``task_index`` that is indexed by them."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    column = {'metadata': None, 'field_name': 'task_index', 'name': 'task_index', 'pandas_type': 'int64',
              'numpy_type': 'int64'}
    index = {'metadata': None, 'field_name': INDEX, 'name': None, 'pandas_type': 'unicode', 'numpy_type': 'object'}
    described = {'index_columns': [INDEX], 'column_indexes': [], 'columns': [column, index], 'attributes': {},
                 'creator': {'library': 'pyarrow', 'version': pa.__version__}, 'pandas_version': '2.2.0'}
    schema = pa.schema([('task_index', pa.int64()), (INDEX, pa.string())], {'pandas': json.dumps(described)})
    rows = {'task_index': list(range(len(tasks))), INDEX: list(tasks)}
    pq.write_table(pa.Table.from_pydict(rows, schema=schema), dataset / TASKS_FILE)


def read_tasks(dataset: Path) -> dict[int, str]:
    """Return the instructions by their numbers. Raise `DataError` if the file can't be read or has no words."""
    rows = read_rows(dataset / TASKS_FILE)
    names = list(rows[0]) if rows else []
    words = [name for name in names if name != 'task_index']
    if 'task_index' not in names or len(words) != 1:
        raise DataError(f'{dataset / TASKS_FILE}: columns {names}, expected task_index and the words')
    return {row['task_index']: str(row[words[0]]) for row in rows}


def decode_png(file: Mapping[str, Any], source: Path) -> np.ndarray:
    """Decode an image that stands in a column, (Y, X, 3) uint8. Raise `DataError` if it can't be decoded."""
    from PIL import Image
    try:
        return np.array(Image.open(io.BytesIO(file['bytes'])).convert('RGB'))
    except (OSError, TypeError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f'{source}: an image can not be decoded: {error}') from error


def _type(feature: Mapping[str, Any]) -> pa.DataType:
    import pyarrow as pa
    if feature['dtype'] == 'image':
        return pa.struct([('bytes', pa.binary()), ('path', pa.string())])
    number = {'bool': pa.bool_(), 'float32': pa.float32(), 'int64': pa.int64()}[feature['dtype']]
    return number if feature['shape'] == (1,) else pa.list_(number, feature['shape'][0])


def _describe(feature: Mapping[str, Any]) -> dict[str, Any]:
    if feature['dtype'] == 'image':
        return {'_type': 'Image'}
    value = {'dtype': feature['dtype'], '_type': 'Value'}
    return value if feature['shape'] == (1,) else {'feature': value, 'length': feature['shape'][0], '_type': 'List'}


def _column(values: np.ndarray | Sequence[bytes], kind: pa.DataType) -> pa.Array:
    import pyarrow as pa
    if pa.types.is_struct(kind):
        return pa.array([{'bytes': file, 'path': None} for file in values], kind)
    flat = np.ascontiguousarray(values).reshape(-1)
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(pa.array(flat, kind.value_type), kind.list_size)
    return pa.array(flat, kind)
