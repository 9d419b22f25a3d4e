"""Files in object stores, read through streaming's own downloaders."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["download", "is_url"]

_MISSING = {"404", "NoSuchKey"}


def is_url(folder: str | Path) -> bool:
    """Whether a folder is in an object store (``s3://bucket/folder``) and not on this machine."""
    return "://" in str(folder) or str(folder).startswith("dbfs:")


def download(url: str, path: str | Path) -> None:
    """Downloads one file, replacing what is there.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it cannot be read for another reason.
    """
    from streaming.base.storage.download import CloudDownloader

    aside = f"{path}.download"
    Path(aside).unlink(missing_ok=True)  # streaming takes a file that is there for the download
    try:
        CloudDownloader.direct_download(url, aside)
    # Each store has errors of its own.
    except Exception as error:
        code = getattr(error, "response", {}).get("Error", {}).get("Code")
        if isinstance(error, FileNotFoundError) or code in _MISSING:
            raise FileNotFoundError(f"there is no {url}.") from error
        raise ValueError(f"{url} cannot be read: {error}") from error
    os.replace(aside, path)
