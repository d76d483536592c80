"""What a hub has, as huggingface_hub fetches and keeps it."""

import re
from collections.abc import Sequence
from pathlib import Path

from ldm.runtime.wrong import first_line

ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # owner/name


def is_hub_id(source: str) -> bool:
    """Whether a source names a hub's model, and nothing that is here."""
    return not Path(source).exists() and ID.fullmatch(source) is not None and not Path(source).suffix[1:].isalpha()


def fetched(source: str, patterns: Sequence[str], *, key: str, extra: str, files: str) -> Path:
    """The folder of a model, fetched from the hub or kept from an earlier time.

    Args:
        source:   its id, as stabilityai/sd-vae-ft-mse
        patterns: of the files that are wanted
        key:      of the configuration that names the source, for errors
        extra:    of this package, with which huggingface_hub is installed
        files:    what to put into a folder where it can't be fetched

    Raises:
        ValueError: if it can't be fetched; says which files to put where.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ValueError(f"{key}={source} is not here, and a hub's models need: pip install 'ldm[{extra}]'") from None
    try:
        return Path(snapshot_download(source, allow_patterns=list(patterns)))
    except Exception as error:  # of the network, of the hub, of its cache
        raise ValueError(
            f"{key}={source} is neither a file here nor to be had from the hub ({type(error).__name__}: "
            f"{_sentence(error)}): put {files} into a folder, and pass {key}=FOLDER"
        ) from None


def _sentence(error: Exception) -> str:
    """The first sentence of what an exception says."""
    return first_line(error).partition(". ")[0].removesuffix(".")[:300]
