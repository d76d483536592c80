"""An exported model in an environment of diffusers and torch alone, made here: the same images as `ldm sample`."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from support import without_ldm
from support.tiny import CPU, TINY_DIFFUSION, inside

from ldm.diffusion.noise import IndexedNoise
from ldm.generate.loading import load_model

pytestmark = pytest.mark.slow
OURS = {"flow": ("euler", "uniform"), "ddpm": ("dpmpp_2m", "uniform"), "edm": ("heun", "karras")}
STEPS = 10


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """The Python of a new virtual environment with diffusers and torch."""
    folder = tmp_path_factory.mktemp("elsewhere") / "venv"
    uv = Path(sys.executable).with_name("uv")
    if not uv.exists():
        pytest.skip("needs uv beside this Python, as `make setup` puts it there, to make an environment")
    named = [f"{name}=={version(name)}" for name in ("torch", "diffusers", "safetensors", "numpy", "pillow")]
    for words in (["venv", "--python", sys.executable, folder], ["pip", "install", "--python", folder, *named]):
        done = subprocess.run([uv, *words], capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"can't make an environment here: {done.stderr.strip().splitlines()[-1]}")
    return folder / "bin" / "python"


@pytest.mark.parametrize("kind", OURS)
def test_it_makes_the_same_images_without_ldm(kind, elsewhere, ldm, pipeline, tmp_path):
    inside(pipeline, ldm)
    run = "runs/diffusion"
    if kind != "flow":
        run = f"runs/{kind}"
        ldm("train-diffusion", f"run={kind}", f"objective={kind}", *TINY_DIFFUSION, *CPU)
    ldm("convert", f"run=out-{kind}", f"model={run}", "to=diffusers")
    model = load_model(run, device="cpu", weights="ema", autoencoder=None, trust=())
    noise, out = tmp_path / "noise.npy", tmp_path / "made.npz"
    np.save(noise, IndexedNoise(0, range(10)).draw(model.latent_shape).numpy())
    words = [elsewhere, without_ldm.__file__, Path(f"runs/out-{kind}").absolute(), noise, str(STEPS), out]
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(words, cwd=tmp_path, env=bare, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made = np.load(out)
    sampler, grid = OURS[kind]
    for guidance in (1, 2):
        words = [f"sampler={sampler}", f"sampler.steps={STEPS}", f"grid={grid}", f"guidance={guidance}"]
        ldm("sample", f"run=ours-{kind}-{guidance}", f"model={run}", "num=10", *words)
        images = np.load(f"runs/ours-{kind}-{guidance}/samples.npz")["arr_0"].astype(int)
        generator = model.generator(sampler=sampler, grid=grid, steps=STEPS, guidance=guidance)
        latents = generator.latents(range(10), model.in_turn(None, None))[0].numpy()
        for name in ("", "again-"):
            theirs = made[f"{name}latents-{guidance}"]
            assert np.linalg.norm(theirs - latents) <= 1e-5 * np.linalg.norm(latents)
            assert np.abs(made[f"{name}images-{guidance}"] - images).max() <= 1
        halved = made[f"bf16-latents-{guidance}"]  # bfloat16 has eight bits
        assert np.linalg.norm(halved - latents) <= 0.05 * np.linalg.norm(latents)
    torch.testing.assert_close(torch.from_numpy(made["latents-1"]), torch.from_numpy(made["again-latents-1"]))
