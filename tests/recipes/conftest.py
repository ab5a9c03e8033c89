"""A small MNIST on disk, for recipes that need published data."""

import struct

import numpy as np
import pytest


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture(scope="session")
def mnist_dir(tmp_path_factory):
    """Images of noise with a bright square that tells the class; 300 to train on, 50 to test."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "mnist").mkdir()
    generator = np.random.default_rng(0)
    for part, count in (("train", 300), ("t10k", 50)):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = generator.integers(0, 60, (count, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            row, column = divmod(int(label), 4)
            image[8 * row : 8 * row + 8, 7 * column : 7 * column + 7] = 250
        (folder / "mnist" / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / "mnist" / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    return folder
