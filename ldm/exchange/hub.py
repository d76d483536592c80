"""Models of a hub, as huggingface_hub fetches and keeps them."""

import re
from pathlib import Path

from ldm.exchange.diffusers_folders import CONFIG, STEM, WEIGHTS
from ldm.runtime.wrong import first_line

ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # owner/name
WANTED = (CONFIG, WEIGHTS, f"{WEIGHTS}.index.json", f"{STEM}-*-of-*.safetensors")  # of a part of a model


def is_hub_id(source: str) -> bool:
    """Whether a source names a hub's model, and nothing that is here."""
    return not Path(source).exists() and ID.fullmatch(source) is not None and not Path(source).suffix[1:].isalpha()


def fetched(source: str, *parts: str) -> Path:
    """The folder of a model's config and safetensors, fetched from the hub or kept from an earlier time.

    Args:
        source: its id, as stabilityai/sd-vae-ft-mse
        parts:  "vae", or "unet" and "transformer": the folders of it where the model is a whole pipeline

    Raises:
        ValueError: if it can't be fetched; says which file to put where.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ValueError(f"source={source} is not here, and a hub's models need: pip install 'ldm[hub]'") from None
    patterns = [f"{folder}{name}" for folder in ("", *(f"{part}/" for part in parts)) for name in WANTED]
    try:
        return Path(snapshot_download(source, allow_patterns=patterns))
    except Exception as error:  # of the network, of the hub, of its cache
        raise ValueError(
            f"source={source} is neither a file here nor to be had from the hub ({type(error).__name__}: "
            f"{_sentence(error)}): put its {CONFIG} and {WEIGHTS} into a folder, and pass source=FOLDER"
        ) from None


def _sentence(error: Exception) -> str:
    """The first sentence of what an exception says."""
    return first_line(error).partition(". ")[0].removesuffix(".")[:300]
