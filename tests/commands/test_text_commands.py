"""Text from captions to prompts: folders, shards, cache, both encoders, students, ranks; and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.captioned import FOLDER, bert, captioned, write_captions
from support.processes import ranks
from support.runs import assert_close_weights, assert_same_training
from support.tiny import CPU, TINY_DIFFUSION, fails

import ldm as library
from ldm.checkpoint import load_diffusion
from ldm.conditioning.pretrained_text import PretrainedText
from ldm.data.blocks import open_shard
from ldm.data.cache_reader import LatentCache

TEXT = [*TINY_DIFFUSION, *CPU, "latents=runs/said", "condition=text", "condition.width=24", "batch_size=4"]
FEW = ["sampler=euler", "sampler.steps=2", "guidance=2"]


@pytest.fixture
def said(there):
    """The command, beside a cache of captioned pictures."""
    captioned(Path("photos"))
    there("cache-latents", "run=said", *FOLDER)
    return there


def captions(run, split="train"):
    return list(LatentCache(run, "full").captions(split))


def test_captions_go_from_folder_through_shards_to_the_cache(said):
    assert sorted(captions("runs/said") + captions("runs/said", "val")) == sorted(
        line["text"] for line in map(json.loads, Path("photos/metadata.jsonl").read_text().splitlines())
    )
    said("pack", "run=packed", *FOLDER, "shard_size=6")
    said("cache-latents", "run=from-shards", "data=shards", "data.root=runs/packed", "data.resolution=32")
    assert captions("runs/from-shards") == captions("runs/said")
    before = (Path("runs/said") / "train-000000.tar").stat().st_mtime_ns
    said("cache-latents", "run=said", *FOLDER)
    assert (Path("runs/said") / "train-000000.tar").stat().st_mtime_ns == before
    lines = [json.loads(line) for line in Path("photos/metadata.jsonl").read_text().splitlines()]
    write_captions("photos", [line | {"text": "something else"} for line in lines])
    said("cache-latents", "run=said", *FOLDER)  # pictures whose captions were changed are encoded again
    assert set(captions("runs/said")) == {"something else"}


@pytest.mark.parametrize("net", [[], ["net=dit_digits", "net.model_channels=24", "net.depth=2"]], ids=["unet", "dit"])
def test_from_training_to_prompts(said, net):
    options = [option for option in TEXT if not (net and option.startswith("net."))] + net
    said("train-diffusion", *options, "run=whole")
    said("train-diffusion", *options, "run=parts", "steps=2")
    said("train-diffusion", *options, "run=parts")
    assert_same_training("runs/whole", "runs/parts", "diffusion")
    card = load_diffusion("runs/whole").card
    assert set(card["condition"]["words"]) == {"a", "square", "red", "green", "blue"}
    Path("lines.txt").write_text("a red square\na blue square\n")
    given = ["model=runs/whole", "num=5", *FEW]
    said("sample", "run=a", *given, "prompts=[a red square,a blue square]")
    said("sample", "run=b", *given, "prompts=lines.txt", "batch_size=2", "interpolation=3", "files=true")
    first, second = (np.load(f"runs/{run}/samples.npz") for run in "ab")
    assert abs(first["arr_0"].astype(int) - second["arr_0"]).max() <= 1  # batches change nothing but rounding
    assert (first["arr_1"] == 2).all()  # the null class: it was told no label
    assert json.loads(Path("runs/b/sample.json").read_text())["prompts"] == ["a red square", "a blue square"]
    assert sorted(path.name for path in Path("runs/b/images").iterdir()) == ["a blue square", "a red square"]
    model = library.load("runs/whole", device="cpu")
    images = model.sample(prompts="a red square", n=2, sampler="euler", steps=2, guidance=2.0)
    assert (images[0].permute(1, 2, 0).numpy().astype(int) - first["arr_0"][0]).max() <= 1
    silent = model.sample(n=1, prompts=[""], sampler="euler", steps=2)
    assert torch.equal(silent, model.sample(n=1, sampler="euler", steps=2))  # the empty text says nothing
    said("likelihood", "model=runs/whole", "num=2", "likelihood.steps=1", *FOLDER)


def test_a_pretrained_encoders_embeddings_are_cached_and_prompts_are_read_by_it(said):
    bert("encoder")
    said("cache-latents", "run=read", *FOLDER, "text_encoder=encoder", "text_tokens=7")
    cache = LatentCache("runs/read", "full")
    shard = cache.manifest.shards.train[0]
    block = open_shard(cache.folder / shard.name, shard.count, cache.manifest)[0]
    texts = [caption.decode() for caption in block.kept["captions"].tolist()]
    import transformers  # the oracle: the model itself

    tokenizer = transformers.AutoTokenizer.from_pretrained("encoder")
    ids = tokenizer(texts, return_tensors="pt", padding="max_length", max_length=7)
    with torch.no_grad():
        theirs = transformers.BertModel.from_pretrained("encoder").eval()(**ids).last_hidden_state
    mask = ids["attention_mask"].bool()
    assert np.array_equal(block.kept["text_mask"], mask.numpy())
    ours = torch.from_numpy(np.array(block.kept["embeddings"])).float()
    torch.testing.assert_close(ours[mask], theirs[mask], rtol=2e-3, atol=2e-3)
    options = [*TINY_DIFFUSION, *CPU, "latents=runs/read", "condition=text_encoder", "batch_size=4"]
    said("train-diffusion", *options, "run=by-bert")
    card = load_diffusion("runs/by-bert").card["condition"]
    assert card["encoder"]["fingerprint"] == PretrainedText.load("encoder", 7).fingerprint
    said("sample", "run=s", "model=runs/by-bert", "num=2", "prompts=a red square", *FEW)
    Path("encoder").rename("moved")
    PretrainedText.load.__func__.__globals__["_load"].cache_clear()
    assert "encoder is no folder of a text encoder" in fails(
        "sample", "run=t", "model=runs/by-bert", "prompts=red", *FEW
    )
    said("sample", "run=t", "model=runs/by-bert", "num=2", "prompts=a red square", "text_encoder=moved", *FEW)
    samples = [np.load(f"runs/{run}/samples.npz")["arr_0"] for run in "st"]
    assert np.array_equal(*samples)
    bert("other", seed=1)
    given = ["sample", "run=u", "model=runs/by-bert", "prompts=red", "text_encoder=other", *FEW]
    assert "has other weights" in fails(*given)
    said("cache-latents", "run=read2", *FOLDER, "text_encoder=other", "text_tokens=7")
    student = [*CPU, "net=teacher", "objective=progressive", "teacher=runs/by-bert", "latents=runs/read2"]
    line = fails("train-diffusion", *student, "run=v")
    assert "another text encoder" in line


def test_its_students(said):
    said("train-diffusion", *TEXT, "run=flow")
    train = [f"'{word}'" for word in ("steps=2", "every=2", CPU[0], "batch_size=4")]
    said("distill", "teacher=runs/flow", "latents=runs/said", "steps=[2,1]", "guidance=2", f"train=[{','.join(train)}]")
    said("train-diffusion", *TEXT, "run=mean", "objective=meanflow", "init=runs/flow", "objective.student.guidance=2")
    for model in ("runs/students/1", "runs/mean"):
        said("sample", f"run=by-{model.rpartition('/')[2]}", f"model={model}", "num=2", "prompts=a red square")


@pytest.mark.slow
def test_two_ranks_are_one(said):
    options = [*TEXT, "schedule.decay=constant", "+optimizer.eps=1e-3"]
    said("train-diffusion", *options, "run=one")
    ranks("train-diffusion", *options, "batch_size=2", "run=ddp")
    assert_close_weights("runs/one", "runs/ddp", "diffusion", rtol=1e-4, atol=1e-5)
    ranks("sample", "run=two", "model=runs/one", "num=3", "prompts=[a red square,a blue square]", *FEW)
    said("sample", "run=alone", "model=runs/one", "num=3", "prompts=[a red square,a blue square]", *FEW)
    pictures = [np.load(f"runs/{run}/samples.npz")["arr_0"].astype(int) for run in ("two", "alone")]
    assert abs(pictures[0] - pictures[1]).max() <= 1


def test_what_does_not_fit_is_said_in_a_line(said):
    assert "is of a model of text" in fails("sample", "run=x", "model=runs/diffusion", "prompts=red")
    latents = ["latents=runs/latents", "run=y"]
    assert "have no captions" in fails("train-diffusion", *TEXT, *latents)
    assert "have no embeddings" in fails("train-diffusion", *TINY_DIFFUSION, *CPU, *latents, "condition=text_encoder")
    assert "is neither a file here nor to be had from the hub" in fails(
        "cache-latents", "run=z", *FOLDER, "text_encoder=nowhere/at-all"
    )
    said("train-diffusion", *TEXT, "run=always", "label_dropout=0")
    assert "never trained without a caption (label_dropout=0): pass prompts=" in fails("sample", "model=runs/always")
    assert "never trained without a caption" in fails("likelihood", "model=runs/always", *FOLDER)
    hidden = ["model=runs/always", "images=photos", "box=[0,0,8,8]"]
    assert "is told none here: choose another" in fails("infill", *hidden)
    assert "prompts=none.txt can't be read" in fails("sample", "run=x", "model=runs/diffusion", "prompts=none.txt")
    lines = [json.loads(line) for line in Path("photos/metadata.jsonl").read_text().splitlines()]
    for wrong, words in (
        ([*lines, {"file_name": "a/missing.png", "text": "gone"}], "metadata.jsonl:21 names a/missing.png"),
        ([*lines, lines[0]], "for the second time"),
        ([{"file": "a"}], "metadata.jsonl:1 is no line like"),
        ([lines[0] | {"text": "long " * 1000}], "has a caption of 4,999 bytes"),
    ):
        write_captions("photos", wrong)
        assert words in fails("cache-latents", "run=w", *FOLDER)
    Path("photos/metadata.jsonl").write_bytes(b"\xff\xfe")
    assert "is no text in UTF-8" in fails("cache-latents", "run=w", *FOLDER)
