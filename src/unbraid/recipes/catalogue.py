"""The published image data sets: classes, shapes, and where their files come from.

Hashes: MNIST's SHA-256 sums are those its mirrors' files have; Fashion-MNIST's MD5 sums are those that its authors and
torchvision publish; CIFAR-10's MD5 sum is the one on the authors' page.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Download:
    """One file, its hash in pooch's notation, and the addresses that serve it."""

    file: str
    known_hash: str
    addresses: tuple[str, ...]


@dataclass(frozen=True)
class Published:
    """What is known of a published data set before any of its files is read."""

    name: str
    title: str
    classes: tuple[str, ...]
    shape: tuple[int, ...]  # (height, width) or (height, width, channel)
    files: tuple[str, ...]  # what a complete folder holds, in the layout that is named first in errors
    downloads: tuple[Download, ...]


TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
IDX_FILES = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)

TRAIN_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST_BATCH = "test_batch"


def _idx_downloads(hashes: tuple[str, ...], mirrors: tuple[str, ...]) -> tuple[Download, ...]:
    names = tuple(f"{file}.gz" for file in IDX_FILES)
    return tuple(
        Download(name, known_hash, tuple(mirror + name for mirror in mirrors))
        for name, known_hash in zip(names, hashes, strict=True)
    )


PUBLISHED = {
    "mnist": Published(
        name="mnist",
        title="MNIST",
        classes=tuple("0123456789"),
        shape=(28, 28),
        files=tuple(f"{file}.gz" for file in IDX_FILES),
        downloads=_idx_downloads(
            (
                "sha256:440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                "sha256:3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                "sha256:8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                "sha256:f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            ),
            (
                "https://ossci-datasets.s3.amazonaws.com/mnist/",
                "https://storage.googleapis.com/cvdf-datasets/mnist/",
            ),
        ),
    ),
    "fashion-mnist": Published(
        name="fashion-mnist",
        title="Fashion-MNIST",
        classes=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        shape=(28, 28),
        files=tuple(f"{file}.gz" for file in IDX_FILES),
        downloads=_idx_downloads(
            (
                "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                "md5:25c81989df183df01b3e8a0aad5dffbe",
                "md5:bef4ecab320f06d8554ea6380940ec79",
                "md5:bb300cfdad3c16e7a12a480ee83cd310",
            ),
            (
                "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
                "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            ),
        ),
    ),
    "cifar10": Published(
        name="cifar10",
        title="CIFAR-10",
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        shape=(32, 32, 3),
        files=tuple(f"{batch}.bin" for batch in (*TRAIN_BATCHES, TEST_BATCH)),
        downloads=(
            Download(
                "cifar-10-binary.tar.gz",
                "md5:c32a1d4ab5d03f1284b67883e8d87530",
                ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
            ),
        ),
    ),
}
