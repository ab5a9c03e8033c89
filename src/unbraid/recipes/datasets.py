"""Data sets of the recipes: scikit-learn's digits, MNIST, Fashion-MNIST, CIFAR-10, and a user's own tensors.

Files are read from where users have them; the network is touched only if a download was asked for, and no pickle is
ever loaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unbraid.ground.devices import moved
from unbraid.ground.errors import FileFormatError, InvalidInputError, require_choice, require_finite
from unbraid.ground.files import read_tensors
from unbraid.ground.manifest import hash_tensors
from unbraid.ground.random import stream
from unbraid.recipes.catalogue import PUBLISHED
from unbraid.recipes.downloads import download as download_files
from unbraid.recipes.images import require_size, to_rows
from unbraid.recipes.layouts import Pixels, find_published, find_source, read_pixels
from unbraid.recipes.splits import stratified_split

DIGITS = "digits"
DATASETS = (DIGITS, *PUBLISHED)
DIGITS_TEST_IMAGES = 450
DIGITS_VALIDATION_FRACTION = 1 / 6
VALIDATION_FRACTION = 0.1


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images as rows, split in three.

    Attributes:
        name: one of `DATASETS`.
        train: x (n, pixels), float32 in [0, 1], and y (n,), int64.
        validation: the same, taken from the training part.
        test: the same; of a published data set, its whole test part in its own order.
        classes: the name of each label.
        provenance: what the files were and how they were split, for people.
        hash: SHA-256 over the six tensors: names data, split and scaling.
    """

    name: str
    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    classes: tuple[str, ...]
    provenance: str
    hash: str

    def to(self, device: str | torch.device) -> Dataset:
        """The same on a device."""
        parts = {name: moved(getattr(self, name), device) for name in ("train", "validation", "test")}
        return replace(self, **parts)

    def describe(self) -> dict[str, Any]:
        """What a manifest says of the data: name, provenance, hash, classes, features and sizes; ready for JSON."""
        return {
            "name": self.name,
            "provenance": self.provenance,
            "hash": self.hash,
            "classes": list(self.classes),
            "features": self.train[0].shape[1],
            "sizes": {"train": len(self.train[1]), "validation": len(self.validation[1]), "test": len(self.test[1])},
        }


def load_dataset(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
    seed: int = 0,
    validation_fraction: float | None = None,
    size: int | None = None,
    read: Callable[[str, Path], Pixels] | None = None,
) -> Dataset:
    """Load a data set, flattened and split.

    Args:
        name: "digits" (8x8, bundled with scikit-learn), "mnist", "fashion-mnist" or "cifar10".
        data_dir: a folder that holds the files, or a subfolder or archive named like the data set; or an archive. Read
            are idx files (gzipped or not, also torchvision's ``MNIST/raw``), CIFAR-10's binary and Python batches, and
            images in ``train/CLASS/`` and ``test/CLASS/`` as a folder, ``.zip`` or ``.tar.gz``. Digits need none.
        download: fetch the published files, checked by hash, unless ``data_dir`` holds them; without ``data_dir`` they
            are kept in the user's cache folder. The network is not touched otherwise.
        seed: chooses the validation part, and the test part of digits (450 images).
        validation_fraction: share of the training part kept for validation, by class; 0 keeps none. By default a sixth
            of digits (225 images) and a tenth of the others.
        size: side of the images: 8, 16 or 32. 28x28 is padded with zeros to 32x32, then means of square blocks are
            taken. None leaves them as published.
        read: instead of :func:`read_published`, if there is ``data_dir`` and no download; one that remembers.

    Returns:
        Rows of 64, 784 or 3072 pixels, or ``size`` squared times the channels; colours vary fastest.

    Raises:
        InvalidInputError: if an argument cannot be used, the files are not there, or the download fails.
        FileFormatError: if a file is damaged, incomplete, or not what its name says.
    """
    require_choice(name, DATASETS, "name of the data set")
    fraction = _require_fraction(validation_fraction, name)
    if name == DIGITS:
        if size not in (None, 8):
            raise InvalidInputError(f"size of digits must be 8, or None for the same; got {size!r}. Try mnist.")
        return _load_digits(seed, fraction)

    published = PUBLISHED[name]
    require_size(size, published.shape, name)
    generator = stream(seed, "dataset", name, "validation")
    place = None if data_dir is None else Path(data_dir)
    if download:
        source = (place and find_published(published, place)) or download_files(published, place)
        pixels = read_pixels(published, source)
    elif place is not None:
        pixels = (read or read_published)(name, place)
    else:
        raise InvalidInputError(
            f"{published.title} needs data_dir=, a folder that holds {', '.join(published.files)}, or download=True."
        )

    (images, labels), (test_images, test_labels) = pixels.train, pixels.test
    y = torch.tensor(labels).to(torch.int64)
    left, chosen = stratified_split(y, _validation_count(len(y), fraction), generator)
    resized = size not in (None, published.shape[0])
    return _dataset(
        name,
        train=(to_rows(images[left.numpy()], size), y[left]),
        validation=(to_rows(images[chosen.numpy()], size), y[chosen]),
        test=(to_rows(test_images, size), torch.tensor(test_labels).to(torch.int64)),
        classes=published.classes,
        provenance=f"{pixels.provenance}; {len(chosen)} of {len(y)} training images for validation, by class, "
        f"seed {seed}" + (f"; scaled to {size}x{size} by block means, 28x28 padded to 32x32 before" if resized else ""),
    )


def read_published(name: str, data_dir: Path) -> Pixels:
    """The images and labels of a published data set, as they are.

    Args:
        name: of the data set.
        data_dir: see :func:`load_dataset`.

    Raises:
        InvalidInputError: if the files are not there.
        FileFormatError: if a file is damaged, incomplete, or not what its name says.
    """
    published = PUBLISHED[name]
    return read_pixels(published, find_source(published, data_dir))


def load_tensors_dataset(path: str | os.PathLike[str]) -> tuple[Tensor, Tensor]:
    """A user's own data: a safetensors file with ``x`` and ``y``.

    Args:
        path: the file. ``x`` has floating-point entries and shape (n, ...), one sample a row; ``y`` has whole numbers
            from 0 up and shape (n,), the classes.

    Returns:
        x as float32 and y as int64.

    Raises:
        FileFormatError: if the file is missing, damaged, or lacks one of the two.
        InvalidInputError: if their shapes, kinds or entries cannot be used.
    """
    tensors, _ = read_tensors(path)
    missing = [key for key in ("x", "y") if key not in tensors]
    if missing:
        raise FileFormatError(
            f"{path} must hold the tensors x and y; it lacks {' and '.join(missing)} and holds "
            f"{', '.join(sorted(tensors)[:12]) or 'none'}. Write it with "
            "safetensors.torch.save_file({'x': x, 'y': y}, path)."
        )
    x, y = tensors["x"], tensors["y"]
    if not x.is_floating_point() or x.ndim < 2:
        raise InvalidInputError(
            f"x in {path} must have floating-point entries and shape (n, features); got {x.dtype}, {tuple(x.shape)}. "
            "Scale pixels to [0, 1] first."
        )
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool or y.ndim != 1:
        raise InvalidInputError(
            f"y in {path} must have whole numbers, the classes, and shape (n,); got {y.dtype}, {tuple(y.shape)}."
        )
    if len(x) != len(y) or not len(y):
        raise InvalidInputError(
            f"x and y in {path} must have the same number of rows, at least one; got {len(x)} and {len(y)}."
        )
    x, y = x.to(torch.float32), y.to(torch.int64)
    require_finite(x, f"x in {path}")
    if int(y.min()) < 0:
        raise InvalidInputError(
            f"y in {path} must be classes from 0 up; got {int(y.min())} at index {int(y.argmin())}."
        )
    return x, y


def split_tensors_dataset(path: str | os.PathLike[str], *, seed: int = 0) -> Dataset:
    """A user's own data as a data set: a fifth for the test, an eighth of the rest for validation, by class.

    Args:
        path: a safetensors file, see :func:`load_tensors_dataset`.
        seed: chooses the parts.

    Raises:
        FileFormatError: if the file is missing, damaged, or lacks a tensor.
        InvalidInputError: if its tensors cannot be used, or there are fewer than ten rows.
    """
    x, y = load_tensors_dataset(path)
    if len(y) < 10:
        raise InvalidInputError(f"{path} has {len(y)} rows: too few to train, validate and test. Give at least ten.")
    rest, test = stratified_split(y, len(y) // 5, stream(seed, "dataset", "tensors", "test"))
    left, chosen = stratified_split(y[rest], len(rest) // 8, stream(seed, "dataset", "tensors", "validation"))
    train, validation = rest[left], rest[chosen]
    return _dataset(
        Path(path).name,
        train=(x[train], y[train]),
        validation=(x[validation], y[validation]),
        test=(x[test], y[test]),
        classes=tuple(str(label) for label in range(int(y.max()) + 1)),
        provenance=f"{len(y)} rows of the user's; split by class, seed {seed}",
    )


def _load_digits(seed: int, fraction: float) -> Dataset:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels: NDArray[np.float64] = bunch.data
    x = torch.tensor(pixels / 16, dtype=torch.float32)
    y = torch.tensor(bunch.target, dtype=torch.int64)
    rest, test = stratified_split(y, DIGITS_TEST_IMAGES, stream(seed, "dataset", DIGITS, "test"))
    count = _validation_count(len(rest), fraction)
    left, chosen = stratified_split(y[rest], count, stream(seed, "dataset", DIGITS, "validation"))
    train, validation = rest[left], rest[chosen]
    return _dataset(
        DIGITS,
        train=(x[train], y[train]),
        validation=(x[validation], y[validation]),
        test=(x[test], y[test]),
        classes=tuple(str(label) for label in range(10)),
        provenance=f"8x8 digits bundled with scikit-learn (UCI), {len(y)} images; split by class, seed {seed}",
    )


def _dataset(
    name: str,
    *,
    train: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    classes: tuple[str, ...],
    provenance: str,
) -> Dataset:
    return Dataset(name, train, validation, test, classes, provenance, hash_tensors(*train, *validation, *test))


def _require_fraction(fraction: object, name: str) -> float:
    if fraction is None:
        return DIGITS_VALIDATION_FRACTION if name == DIGITS else VALIDATION_FRACTION
    if not isinstance(fraction, int | float) or not 0 <= fraction < 1:
        raise InvalidInputError(f"validation_fraction must be a number from 0 to below 1; got {fraction!r}.")
    return float(fraction)


def _validation_count(total: int, fraction: float) -> int:
    count = int(total * fraction + 0.5)
    if count == total or (fraction > 0 and count == 0):
        raise InvalidInputError(
            f"validation_fraction={fraction} of {total} training images leaves {total - count} for training and "
            f"{count} for validation. Choose another fraction, or 0 for no validation."
        )
    return count
