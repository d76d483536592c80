"""FOLDER NOISE STEPS OUT, where ldm is not installed: loads an exported pipeline, and writes what it makes of noise."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline


def load(folder, dtype=torch.float32):
    pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True, torch_dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def main(folder, noise, steps, out):
    assert importlib.util.find_spec("ldm") is None
    assert not [path for path in Path(folder).rglob("*") if path.suffix in (".bin", ".pt", ".ckpt", ".pkl")]
    start = torch.from_numpy(np.load(noise))
    made = {}
    pipe = load(folder)
    pipe.save_pretrained(f"{out}-again")
    for name, each in (("", pipe), ("bf16-", load(folder, torch.bfloat16)), ("again-", load(f"{out}-again"))):
        for guidance in (1, 2):
            options = {"guidance_scale": guidance, "num_inference_steps": int(steps), "latents": start}
            made[f"{name}latents-{guidance}"] = each(output_type="latent", **options).images.numpy()
            pictures = each(list(range(10)), **options).images
            made[f"{name}images-{guidance}"] = np.stack([np.asarray(picture) for picture in pictures])
    np.savez(out, **made)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
