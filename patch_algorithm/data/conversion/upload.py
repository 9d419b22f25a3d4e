"""Files to object stores, through streaming's own uploaders."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from patch_algorithm.data.conversion.records import ConversionError

__all__ = ["Uploader"]

_RETRIES = 4


class Uploader:
    """Uploads files of a local folder to the same places below a URL.

    Files are uploaded whole or not at all: object stores show no half-written object. One uploader may be
    used by several threads.

    Args:
        folder: The local folder.
        url: The folder in the object store.

    Raises:
        ValueError: If the URL is not one that streaming can write to, or its bucket is not there.
    """

    def __init__(self, folder: str | Path, url: str) -> None:
        # Imported here: it takes seconds, and pulls in torch.
        from streaming.base.storage.upload import UPLOADERS, CloudUploader

        scheme = urlparse(url).scheme
        if not scheme or scheme not in UPLOADERS:
            known = ", ".join(f"{name}://" for name in UPLOADERS if name.isidentifier() or "-" in name)
            raise ValueError(f"cannot write to {url!r}; expected a local folder or one of {known}.")
        with tempfile.TemporaryDirectory() as empty:
            # The constructor refuses, or warns of, a folder that holds files; ours does when resuming.
            try:
                self._uploader: Any = CloudUploader.get((empty, url), keep_local=True, retry=_RETRIES)
            # Each store has errors of its own.
            except Exception as error:
                raise ValueError(f"cannot write to {url!r}: {error}") from error
        self._uploader.local = str(folder)
        self._url = url

    def holds_anything(self) -> bool:
        """Whether there are objects below the URL; ``False`` where the store cannot be asked.

        Raises:
            ValueError: If it does not answer.
        """
        try:
            return bool(self._uploader.list_objects())
        except NotImplementedError:  # streaming's clients of some stores cannot
            return False
        # Each store has errors of its own.
        except Exception as error:
            raise ValueError(f"cannot list what is at {self._url!r}: {error}") from error

    def upload(self, file: str) -> None:
        """Uploads ``folder/file`` to ``url/file``, replacing what is there.

        Raises:
            ConversionError: If the object store does not take it, though asked several times.
        """
        try:
            self._uploader.upload_file(file)
        # Each store has errors of its own.
        except Exception as error:
            raise ConversionError(
                f"{file} could not be uploaded to {self._url}: {error}. Finished work is kept: repeat the "
                "command to continue."
            ) from error
