"""Small captioned pictures, and a text encoder of transformers that has never been trained."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
FOLDER = ["data=folder", "data.root=photos", "data.val_fraction=0.2", "data.resolution=32"]


def captioned(folder, n=20):
    """Noisy squares of three colours, in two classes, each with the caption "a red square"."""
    rng = np.random.default_rng(0)
    lines = []
    for i in range(n):
        name = list(COLORS)[i % 3]
        pixels = np.array(COLORS[name]) * 0.7 + rng.integers(0, 70, (32, 32, 3))
        file = Path(folder, "ab"[i % 2], f"{i:02d}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(file)
        lines.append({"file_name": file.relative_to(folder).as_posix(), "text": f"a {name} square"})
    write_captions(folder, lines)
    return lines


def write_captions(folder, lines):
    Path(folder, "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def bert(folder, seed=0):
    """A BERT of one narrow layer with its tokenizer, as transformers saves them."""
    import torch
    import transformers

    folder = Path(folder)
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "green", "blue", "square"]
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = transformers.BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=16)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=16,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    return folder
