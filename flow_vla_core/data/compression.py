"""Decompresses what a bag holds, never into more memory than was announced."""

from __future__ import annotations

from pathlib import Path
import tempfile
from typing import IO

from flow_vla_core.errors import DataError, in_one_line

__all__ = ['SIZE_LIMIT', 'decompress', 'decompress_file']

SIZE_LIMIT = 2 ** 30  # bytes of one chunk or message; a length above it can only come from a damaged file
PIECE = 2 ** 20
FILE_LIMIT = 2 ** 40


def decompress(data: bytes | memoryview, kind: str, size: int | None = None) -> bytes | memoryview:
    """Decompress ``''``, ``zstd`` or ``lz4``.

    Args:
        data: compressed.
        kind: of compression.
        size: that it must have afterwards, bytes; None for any up to `SIZE_LIMIT`.

    Raises:
        DataError: if it can't be decompressed, or the size is another one.
    """
    if size is not None and size > SIZE_LIMIT:
        raise DataError(f'{size} bytes announced, at most {SIZE_LIMIT} are read')
    if kind not in ('', 'zstd', 'lz4'):
        raise DataError(f'compression {kind!r} is unknown; allowed: none, lz4, zstd')
    try:
        found = data if kind == '' else (_zstd if kind == 'zstd' else _lz4)(data, SIZE_LIMIT if size is None else size)
    except DataError:
        raise
    except Exception as error:  # damaged data make the decompressors raise anything
        raise DataError(f'not valid {kind}: {in_one_line(error)}') from error
    if size is not None and len(found) != size:
        raise DataError(f'{len(found)} bytes, {size} were announced')
    return found


def decompress_file(path: Path) -> IO[bytes]:
    """Decompress a zstd file into a temporary one, which goes when it is closed. Raise `DataError` if it can't be."""
    import zstandard
    target = tempfile.NamedTemporaryFile(prefix='flow_vla_', suffix=Path(path.stem).suffix)  # noqa: SIM115
    written = 0
    try:
        with path.open('rb') as source, zstandard.ZstdDecompressor().stream_reader(source) as reader:
            while piece := reader.read(PIECE):
                written += target.write(piece)
                if written > FILE_LIMIT:
                    raise DataError(f'more than {FILE_LIMIT} bytes')
    except (OSError, zstandard.ZstdError, DataError) as error:
        if not written:
            target.close()
            raise DataError(f'{path.name}: can not be decompressed: {error}') from error
    target.flush()
    return target


def _zstd(data: bytes | memoryview, limit: int) -> bytes:
    import zstandard
    decompressor = zstandard.ZstdDecompressor()
    announced = zstandard.frame_content_size(data)
    if 0 <= announced <= min(limit, 64 * len(data)):
        return decompressor.decompress(data)
    pieces, total = [], 0
    with decompressor.stream_reader(data) as reader:
        while piece := reader.read(min(PIECE, limit + 1 - total)):
            pieces.append(piece)
            total += len(piece)
            if total > limit:
                raise DataError(f'more than the {limit} bytes that were announced')
    return b''.join(pieces)


def _lz4(data: bytes | memoryview, limit: int) -> bytes:
    import lz4.frame
    decompressor = lz4.frame.LZ4FrameDecompressor()
    found = decompressor.decompress(data, max_length=min(limit, 256 * len(data)) + 1)
    if not decompressor.eof:
        raise DataError('lz4 that ends early, or is longer than announced')
    return found
