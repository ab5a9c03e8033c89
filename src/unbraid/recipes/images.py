"""Images: decoding files of a class-folder tree, and turning pixels into rows that a network reads."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections import defaultdict
from pathlib import PurePosixPath

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from unbraid.ground.errors import FileFormatError, InvalidInputError
from unbraid.recipes.catalogue import Published
from unbraid.recipes.idx import Part

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
PADDED_SIDE = 32


def decode_image(content: bytes, name: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """A JPEG or PNG image as an array.

    Args:
        content: the file's bytes.
        name: how errors call the file.
        shape: (height, width) for grey, (height, width, 3) for colour. The size is compared with the header before any
            pixel is decoded.

    Returns:
        The pixels, of this shape.

    Raises:
        FileFormatError: if the file is no such image, is damaged, or has another size.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
            height_width = (image.height, image.width)
            if height_width == shape[:2]:
                return np.asarray(image.convert("RGB" if len(shape) == 3 else "L"))
    except (
        OSError,
        EOFError,
        SyntaxError,
        ValueError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    ) as error:
        raise FileFormatError(
            f"{name} is no complete JPEG or PNG image ({error}). Get it again, or remove it from the folder."
        ) from error
    raise FileFormatError(
        f"{name} must be {shape[1]}x{shape[0]} pixels; it is {height_width[1]}x{height_width[0]}. Is this "
        "another data set? Otherwise resize the images first."
    )


class ImageTree:
    """Collects the images of a tree ``train/CLASS/*``, ``test/CLASS/*``.

    CLASS is the published name of a class or its number; all classes must be there.
    """

    def __init__(self, published: Published, place: str) -> None:
        self._published = published
        self._place = place
        self._images: dict[str, dict[str, dict[str, NDArray[np.uint8]]]] = {
            split: defaultdict(dict) for split in ("train", "test")
        }
        self.lossy = False

    @staticmethod
    def holds(name: str) -> bool:
        """Whether the path is that of an image in such a tree."""
        parts = PurePosixPath(name).parts
        return (
            len(parts) >= 3
            and parts[-3] in ("train", "test")
            and parts[-1].lower().endswith(IMAGE_SUFFIXES)
            and not parts[-1].startswith(".")
            and "__MACOSX" not in parts
        )

    def add(self, name: str, content: bytes) -> None:
        """Decode one image.

        Raises:
            FileFormatError: if it cannot be decoded.
        """
        split, folder, file = PurePosixPath(name).parts[-3:]
        self._images[split][folder][file] = decode_image(content, f"{name} in {self._place}", self._published.shape)
        self.lossy = self.lossy or not file.lower().endswith(".png")

    def part(self, split: str) -> Part:
        """Images and labels of ``"train"`` or ``"test"``, classes taking turns so that any first rows are balanced.

        Raises:
            FileFormatError: if there are no images, if a class is missing, or if a folder is no class.
        """
        by_folder = self._images[split]
        classes = self._published.classes
        numbers = tuple(str(number) for number in range(len(classes)))
        names = numbers if set(by_folder) <= set(numbers) else classes
        unknown = sorted(set(by_folder) - set(names))
        missing = [name for name in names if not by_folder.get(name)]
        if not by_folder:
            problem = f"has no images ({', '.join(IMAGE_SUFFIXES)}) below {split}/CLASS/"
        elif unknown:
            problem = f"has folders in {split}/ that are no classes: {', '.join(unknown[:12])}"
        elif missing:
            problem = f"has no images in {split}/ of these classes: {', '.join(missing)}"
        else:
            in_turn = sorted(
                (rank, label, file)
                for label, name in enumerate(names)
                for rank, file in enumerate(sorted(by_folder[name], key=_natural))
            )
            images = np.stack([by_folder[names[label]][file] for _, label, file in in_turn])
            return images, np.array([label for _, label, _ in in_turn], np.uint8)
        raise FileFormatError(
            f"{self._place} {problem}. {self._published.title} needs all of its classes in train/ and in test/: "
            f"{', '.join(classes)} (or 0 to {len(classes) - 1})."
        )


def _natural(name: str) -> list[tuple[int, int | str]]:
    """A key that puts 2.png before 10.png."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", name)]


def sizes_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The sides that images of this shape can be brought to."""
    return tuple(sorted({8, 16, PADDED_SIDE, shape[0]}))


def require_size(size: object, shape: tuple[int, ...], name: str) -> None:
    """Refuse a side that `to_rows` cannot make.

    Raises:
        InvalidInputError: naming the choices.
    """
    if size is not None and (type(size) is not int or size not in sizes_of(shape)):
        raise InvalidInputError(
            f"size of {name} must be one of {', '.join(map(str, sizes_of(shape)))}, or None for {shape[0]} as "
            f"published; got {size!r}."
        )


def to_rows(images: NDArray[np.uint8], size: int | None = None) -> Tensor:
    """Pixels in [0, 1], one image a row.

    Args:
        images: shape (n, height, width) or (n, height, width, channel), 28 or 32 a side.
        size: side of the result. Images are padded with zeros to 32x32 (two pixels a side for 28x28), then means of
            square blocks are taken; None, or the images' own side, leaves them as they are.

    Returns:
        float32, shape (n, pixels), in (height, width, channel) order.
    """
    x = torch.tensor(images).to(torch.float32).div_(255)
    side = images.shape[1]
    if size is not None and size != side:
        border = (PADDED_SIDE - side) // 2
        planes = x[:, None] if x.ndim == 3 else x.movedim(-1, 1)  # shape: (n, channel, height, width)
        planes = functional.pad(planes, (border,) * 4)
        x = functional.avg_pool2d(planes, PADDED_SIDE // size).movedim(1, -1)
    return x.flatten(1)
