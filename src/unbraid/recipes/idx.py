"""The idx format of MNIST: two zero bytes, a type, the number of dimensions, big-endian sizes, then the entries."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from unbraid.ground.errors import FileFormatError
from unbraid.recipes.catalogue import TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS
from unbraid.recipes.containers import gunzip

UNSIGNED_BYTE = 8

Part = tuple[NDArray[np.uint8], NDArray[np.uint8]]  # images (n, height, width[, channel]), labels (n,)


def read_idx(content: bytes, name: str, ndim: int) -> NDArray[np.uint8]:
    """An idx file of unsigned bytes, plain or gzipped.

    Args:
        content: the file's bytes.
        name: how errors call the file.
        ndim: 3 for images, 1 for labels.

    Returns:
        The array, shape as the file says.

    Raises:
        FileFormatError: if the gzip stream is damaged, the magic number is another, or the length does not fit.
    """
    plain = gunzip(content, name)
    expected = bytes([0, 0, UNSIGNED_BYTE, ndim])
    if plain[:4] != expected:
        raise FileFormatError(
            f"{name} must start with the idx magic number {expected.hex()} (unsigned bytes, {ndim} dimension(s)); got "
            f"{plain[:4].hex() or 'an empty file'}. It may be another file or a web page saved under this name."
        )
    start = 4 + 4 * ndim
    if len(plain) < start:
        raise FileFormatError(f"{name} ends within its header. It is truncated: get it again.")
    shape = struct.unpack(f">{ndim}I", plain[4:start])
    if len(plain) - start != math.prod(shape):
        raise FileFormatError(
            f"{name} announces {shape} = {math.prod(shape):,} bytes; it holds {len(plain) - start:,}. Get it again."
        )
    return np.frombuffer(plain, np.uint8, offset=start).reshape(shape)


def read_idx_files(files: Mapping[str, bytes]) -> tuple[Part, Part]:
    """Training and test part from the four idx files under their usual names."""
    return (
        (read_idx(files[TRAIN_IMAGES], TRAIN_IMAGES, 3), read_idx(files[TRAIN_LABELS], TRAIN_LABELS, 1)),
        (read_idx(files[TEST_IMAGES], TEST_IMAGES, 3), read_idx(files[TEST_LABELS], TEST_LABELS, 1)),
    )
