"""Text encoders of Hugging Face's transformers, from a folder or by a hub's id."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.runtime.hub import fetched, is_hub_id
from ldm.runtime.wrong import first_line
from ldm.weights import weights_fingerprint

AT_ONCE = 256  # texts
WANTED = ("*.json", "*.safetensors", "*.txt", "*.model")  # of a hub's model
FILES = "config.json, model.safetensors and the tokenizer's files"


class PretrainedText:
    """A text encoder: texts -> embeddings [B, L, D], and which of their tokens are there, bool [B, L].

    The empty text is one token of zeros, whatever the encoder would say.

    Args:
        model:     of transformers, in evaluation mode
        tokenizer: its own
        tokens:    L; what goes beyond is cut off
        source:    the folder or the hub's id that it came from
    """

    def __init__(self, model: Any, tokenizer: Any, tokens: int, source: str) -> None:
        self.model, self.tokenizer, self.tokens, self.source = model, tokenizer, tokens, source
        self.fingerprint = weights_fingerprint(model)
        self.width = int(self._encoded(["a"])[0].shape[-1])

    @classmethod
    def load(cls, source: str, tokens: int) -> "PretrainedText":
        """The encoder that a folder or a hub's id holds; it is read once.

        Raises:
            ValueError: if transformers is not installed, or finds no text encoder there.
        """
        return _load(source, tokens)

    def card(self) -> dict[str, Any]:
        """What a cache says of it."""
        return {
            "source": self.source, "fingerprint": self.fingerprint, "tokens": self.tokens, "width": self.width
        }  # fmt: skip

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        parts = [self._encoded(list(texts[i : i + AT_ONCE])) for i in range(0, len(texts), AT_ONCE)]
        embeddings, mask = torch.cat([part for part, _ in parts]), torch.cat([mask for _, mask in parts])
        empty = torch.tensor([not text.strip() for text in texts])
        only_first = torch.arange(self.tokens) == 0
        embeddings[empty], mask[empty] = 0.0, only_first
        return embeddings, mask

    @torch.inference_mode()
    def _encoded(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        given = self.tokenizer(
            texts, padding="max_length", truncation=True, max_length=self.tokens, return_tensors="pt"
        )
        device = next(self.model.parameters()).device
        given = {key: value.to(device) for key, value in given.items() if key in ("input_ids", "attention_mask")}
        embeddings = self.model(**given).last_hidden_state.float().cpu()
        mask = given["attention_mask"].bool().cpu()
        return embeddings.masked_fill(~mask[..., None], 0.0), mask


@cache
def _load(source: str, tokens: int) -> PretrainedText:
    try:
        import transformers
    except ImportError:
        raise ValueError("text encoders come with transformers: pip install 'ldm[text]'") from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    folder = fetched(source, WANTED, key="text_encoder", extra="text", files=FILES) if is_hub_id(source) else source
    try:
        here: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        config = transformers.AutoConfig.from_pretrained(folder, **here)
        clip = config.model_type == "clip"  # of which the text's half is wanted
        kind: Any = transformers.CLIPTextModel if clip else transformers.AutoModelForTextEncoding
        whole: dict[str, Any] = {"use_safetensors": True, "output_loading_info": True, **here}
        model, loaded = kind.from_pretrained(folder, dtype=torch.float32, **whole)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **here)
    except Exception as error:  # what transformers raises is of many kinds
        raise ValueError(
            f"text_encoder={source} is no folder of a text encoder ({first_line(error)[:200]}): it wants {FILES}"
        ) from None
    if hasattr(model, "pooler"):
        model.pooler = None  # its output is not asked for, and many checkpoints have none
    missing = sorted(name for name in loaded["missing_keys"] if "pooler." not in name)
    if missing:
        raise ValueError(f"text_encoder={source} lacks {missing[0]} and {len(missing) - 1} more weights: copy it anew")
    model.eval().requires_grad_(False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    most = min(getattr(model.config, "max_position_embeddings", tokens) or tokens, tokenizer.model_max_length)
    if tokens > most:
        raise ValueError(f"text_tokens={tokens} is more than text_encoder={source} can read: at most {most}")
    return PretrainedText(model, tokenizer, tokens, str(Path(source).resolve()) if folder == source else source)
