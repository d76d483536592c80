"""Mistakes that Hydra finds: each ends in one line that says what to write instead, and leaves nothing behind."""

import os
import shlex
from pathlib import Path

import pytest
from support.tiny import fails

DIFFUSION, AUTOENCODER = "train-diffusion", "train-autoencoder"


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        (DIFFUSION, ["stpes=3"], "stpes is no key of ldm train-diffusion: did you mean steps?"),
        (DIFFUSION, ["~stpes"], "did you mean steps?"),
        (AUTOENCODER, ["optimizer.lrr=3"], "did you mean optimizer.lr?"),
        (AUTOENCODER, ["lr=3"], "did you mean optimizer.lr or disc_optimizer.lr?"),
        (DIFFUSION, ["net.foo=3"], "there are net._target_, net.model_channels"),
        (DIFFUSION, ["steps.x=3"], "did you mean steps?"),
        (DIFFUSION, ["+steps=3"], "steps has a value already: pass steps=, without the +"),
        (DIFFUSION, ["objective=flwo"], "objective=flwo is no choice of ldm train-diffusion: did you mean flow?"),
        (
            DIFFUSION,
            ["objective="],
            "objective= is no choice of ldm train-diffusion: there are ardm, consistency, cosine_v, ddpm",
        ),
        (DIFFUSION, ["regularizer=kl"], "ldm train-diffusion has no group regularizer; it has net, objective"),
        (DIFFUSION, ["data.root=photos"], "data=cached has no root: pass data=folder (or shards) data.root=photos"),
        (DIFFUSION, ["experiment=kl_f8"], "is for another command: ldm train-autoencoder experiment=kl_f8"),
        (AUTOENCODER, ["-m", "experiment=kl_f8,imagenet256_f8"], "ldm train-diffusion experiment=imagenet256_f8"),
        ("sample", ["sweep=autoencoders"], "is for another command: ldm probe sweep=autoencoders"),
        (AUTOENCODER, ["data.root=photos"], "data=digits has no root: pass data=folder (or shards) data.root=photos"),
        ("sample", ["sampler=euler", "sampler.function.churn=1"], "pass sampler=heun sampler.function.churn=1"),
        (AUTOENCODER, ["data=folder"], "data.root has no value: pass data.root=... (the folder)"),
        ("reconstruct", [], "images has no value: pass images=... (a picture, or a folder of them"),
        (DIFFUSION, ["launcher=joblib"], "launcher=joblib is for a sweep, and would do nothing here: pass -m, too"),
        (DIFFUSION, ["trainer.gradient_clip_val=1"], "is added by +trainer.gradient_clip_val=1"),
        (DIFFUSION, ["steps=${nothing}"], "steps refers to ${nothing}, and there is no key nothing"),
        (DIFFUSION, ["hydra.launcher.foo=1"], "hydra.launcher.foo is no key of Hydra's"),
        (DIFFUSION, ["foo"], "foo is neither a flag nor KEY=VALUE"),
        (DIFFUSION, ["steps:3"], "steps:3 is neither a flag nor KEY=VALUE"),
        (DIFFUSION, ["=3"], "=3 names no key"),
        (DIFFUSION, ["/objective=flow"], "names no key: write KEY=VALUE, as objective=flow"),
        (DIFFUSION, ["run=a=b"], """quote the value, for Hydra and for the shell: 'run="a=b"'"""),
        (DIFFUSION, ["-m", "latents=a=b,c"], """quote each value, for Hydra and for the shell: 'latents="a=b","c"'"""),
        ("probe", ["probe.samples=[num=2,a=[1,2]]"], """'probe.samples=["num=2","a=[1,2]"]'"""),
        (DIFFUSION, ["run=photos (1)"], """: 'run="photos (1)"'"""),
        (DIFFUSION, ["run='a b"], """: 'run="a b"'"""),
        (DIFFUSION, ["run=~/x"], """: 'run="~/x"'"""),
        (DIFFUSION, ["run=a,b"], """pass -m to run the command with each of them, or 'run="a,b"' for a text"""),
        (DIFFUSION, ["net.channel_mult=1,2"], "or net.channel_mult=[1,2] for a list"),
        (DIFFUSION, ["--bogus"], "--bogus is no flag: ldm train-diffusion --help lists keys and groups"),
        (DIFFUSION, ["--steps", "5"], "--steps is no flag: write steps=VALUE"),
        (DIFFUSION, ["--run=x"], "--run=x is no flag: write run=x"),
        (DIFFUSION, ["-sc", "install=bash"], 'eval "$(ldm --completion bash)"'),
        (DIFFUSION, ["-m", "seed=interval(0,1)"], "an interval is for sweep=optuna"),
        (DIFFUSION, ["-m", "objective=flow,flwo"], "objective=flwo is no choice"),
        (
            DIFFUSION,
            ["-m", "launcher=slurm", "hydra.launcher.nodes=a"],
            "hydra.launcher.nodes=a: Value 'a' of type 'str' could",
        ),
        (DIFFUSION, ["-m", "hydra/launcher=ray", "seed=0,1"], "needs a package that is not installed: pip install"),
    ],
)
def test_one_line_says_what_to_write_instead(ldm, command, words, said):
    assert said in fails(command, *words)
    assert not list(Path().iterdir())


@pytest.mark.parametrize("name", ["a=b", "photos (1)", "a,b", "it's", 'a"b', "{a", "a,b=c", "a[0] b"])
def test_a_suggested_quote_is_what_hydra_reads(ldm, name):
    """What the error says to write, as a shell reads it, names the folder that was meant."""
    line = fails("train-diffusion", f"latents={name}")
    suggested = shlex.split(line[max(line.rindex(f" {quote}latents=") for quote in "'" if quote in line) :])[0]
    assert f"latents={name} does not exist" in fails("train-diffusion", suggested)


def test_slurm_launcher_without_slurm(ldm, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    line = fails("train-diffusion", "-m", "launcher=slurm", "seed=0,1")
    assert "launcher=slurm needs sbatch and srun, which are not here" in line


def test_slurm_refuses_the_jobs(ldm, tmp_path, monkeypatch):
    """As a cluster without GPUs does."""
    said = "sbatch: error: Batch job submission failed: Invalid generic resource (gres) specification"
    for program in ("srun", "sbatch"):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / program).write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
        (tmp_path / "bin" / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    line = fails("train-diffusion", "-m", "launcher=slurm", "seed=0,1")
    assert said in line
    assert "hydra.launcher.gpus_per_node= (null without GPUs)" in line
