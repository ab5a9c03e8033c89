"""Fetching published files, with their hashes checked. Nothing here runs unless a download was asked for."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pooch

from unbraid.ground.errors import InvalidInputError
from unbraid.ground.files import make_directory
from unbraid.recipes.catalogue import Download, Published


def download(published: Published, data_dir: str | os.PathLike[str] | None) -> Path:
    """Fetch what is not there yet.

    Args:
        published: which data set.
        data_dir: the files go to a subfolder of the data set's name; None chooses the user's cache folder.

    Returns:
        The folder with the files, or the one file.

    Raises:
        InvalidInputError: if no address serves a file with the right hash; the message says why each did not.
        OutputError: if the folder cannot be written to.
    """
    folder = make_directory(Path(pooch.os_cache("unbraid") if data_dir is None else data_dir) / published.name)
    for file in published.downloads:
        _fetch(file, folder, published.title)
    return folder if len(published.downloads) > 1 else folder / published.downloads[0].file


def _fetch(file: Download, folder: Path, title: str) -> None:
    logger: logging.Logger = pooch.get_logger()
    level = logger.level
    logger.setLevel(logging.WARNING)
    causes = []
    try:
        for address in file.addresses:
            try:
                pooch.retrieve(address, known_hash=file.known_hash, fname=file.file, path=folder)
            except (OSError, ValueError) as error:  # no connection; another hash than the published one
                causes.append(f"{address}: {' '.join(str(error).split())}")
            else:
                return
    finally:
        logger.setLevel(level)
    raise InvalidInputError(
        f"Could not download {file.file} of {title}. {'; '.join(causes)}. Check the connection, or get the file "
        f"yourself, put it into {folder} and pass that folder as data_dir."
    )
