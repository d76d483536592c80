"""Sharded checkpoints: other numbers of ranks read them, kills leave them whole, damage is refused."""

import shutil
from contextlib import chdir
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from support.interruptions import killed_often
from support.processes import aside, ranks, start_ranks, succeeds
from support.runs import assert_close_weights, assert_equal, checkpoint
from support.tiny import CPU, TINY_DIFFUSION, fails

from ldm import checkpoint as checkpoints
from ldm.sharded_checkpoint import REST, SHARDS, Shards, is_sharded_checkpoint, remove, split
from ldm.training.best import KeepBest
from ldm.training.sharded_saves import ShardedSaves

OPTIONS = [*TINY_DIFFUSION, *CPU, "schedule.decay=constant"]
SHARDED = ["trainer.strategy=fsdp", "trainer.checkpoints=sharded"]


@pytest.fixture(scope="module")
def saved(pipeline, tmp_path_factory):
    """Runs of a single rank, of which one saved folders, the other files."""
    with chdir(tmp_path_factory.mktemp("saved")):
        for run, options in (("sharded", SHARDED), ("whole", SHARDED[:1])):
            ranks("train-diffusion", *OPTIONS, *options, f"latents={pipeline}/runs/latents", f"run={run}", world=1)
        return Path("runs").resolve()


@pytest.fixture
def sharded(saved, ldm):
    """A copy of the first, in this test's own folder."""
    shutil.copytree(saved, "runs")
    return Path("runs/sharded")


def test_what_is_sharded_is_for_fsdp(pipeline, ldm):
    line = fails("train-diffusion", f"latents={pipeline}/runs/latents", "trainer.checkpoints=sharded")
    assert "trainer.checkpoints=sharded is for trainer.strategy=fsdp" in line
    line = fails("train-diffusion", f"latents={pipeline}/runs/latents", "trainer.shard_within=2")
    assert "trainer.shard_within=2 is for trainer.strategy=fsdp" in line


def test_a_tree_without_shards_is_as_it_was():
    tree = {"a": [1, {"b": torch.zeros(2)}], "c": (3, None)}
    rest, tensors = split(tree)
    assert rest == {"tree": tree, "places": []}
    assert tensors == {}


def test_one_process_reads_it_as_the_file_that_it_would_have_saved(sharded, pipeline, ldm):
    """Whole or in shards: the same keys, types and values, for every command; and one file, by convert."""
    whole, parts = checkpoint("runs/whole", "diffusion"), checkpoint(sharded, "diffusion")
    for key in ("state_dict", "current_model_state", "optimizer_states"):
        assert_equal(parts[key], whole[key])
    ldm("convert", "model=runs/sharded", "run=file")
    (file,) = checkpoints.saved(Path("runs/file"))
    assert file.is_file()
    assert_equal(checkpoints.read(file, "diffusion")["state_dict"], whole["state_dict"])
    for model in ("runs/sharded", "runs/file", "runs/sharded/checkpoints/00000004.ckpt"):
        autoencoder = f"autoencoder={pipeline}/runs/autoencoder"
        ldm("sample", f"model={model}", autoencoder, "num=2", "sampler.steps=1", "overwrite=true")


def test_the_newest_and_the_best_are_kept(sharded):
    assert [file.name for file in checkpoints.saved(sharded)] == ["00000002.ckpt", "00000004.ckpt"]
    assert all(is_sharded_checkpoint(file) for file in checkpoints.saved(sharded))
    assert not list((sharded / "checkpoints").glob(".*"))


def test_ranks_of_nodes_without_a_shared_disk_are_refused(tmp_path):
    """Rank 1 sees the folder of rank 0, or one of its own."""
    for own in (False, True):
        folders = [tmp_path / "of 0", tmp_path / "of 1" if own else tmp_path / "of 0"]
        told = [tmp_path / f"told by {rank}" for rank in (0, 1)]
        store = f"file://{tmp_path / f'ranks {own}'}"
        succeeds(*(aside(_look, store, rank, folders[rank], told[rank]) for rank in (0, 1)))
        assert [bool(file.read_text()) for file in told] == [own, own]
        assert not list(tmp_path.glob("of */*")) and not list(tmp_path.glob("of */.*"))
    assert all(f"not all ranks see what rank 0 writes into {folder}" in file.read_text()
               for file, folder in zip(told, folders, strict=True))  # fmt: skip


def _look(store, rank, folder, told):
    folder.mkdir(exist_ok=True)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    try:
        ShardedSaves().check(folder)
        told.write_text("")
    except ValueError as error:
        told.write_text(str(error))


@pytest.mark.parametrize("name", [SHARDS, REST, "__0_0.distcp"])
def test_damage_is_found_and_the_one_before_is_taken(sharded, name, caplog):
    file = sharded / "checkpoints/00000004.ckpt" / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 16
    file.write_bytes(data)
    found, _ = checkpoints.find(sharded, "diffusion")
    assert found.name == "00000002.ckpt"
    assert "00000004.ckpt is damaged" in caplog.text
    file.unlink()
    assert checkpoints.find(sharded, "diffusion")[0].name == "00000002.ckpt"


@pytest.mark.parametrize("part", [{"first": 1}, {"count": 1}, {"file": "../rest.pt"}])
def test_its_description_must_lead_to_all_of_each_tensor(sharded, part):
    """Else what no part covers would be whatever lay in memory."""
    folder = sharded / "checkpoints/00000004.ckpt"
    said = Shards.read(folder / SHARDS)
    key = next(key for key, stored in said.tensors.items() if stored.size[0] > 2)
    stored = said.tensors[key]
    first = stored.parts[0].model_copy(update=part)
    changed = stored.model_copy(update={"parts": [first, *stored.parts[1:]]})
    Shards(tensors=said.tensors | {key: changed}).write(folder / SHARDS)
    with pytest.raises(checkpoints.DamagedError, match=r"shards\.json does not say where all of"):
        checkpoints.read(folder, "diffusion")


def test_folders_and_files_take_each_other_s_place(sharded, saved, pipeline, ldm):
    """As the best one, as one that was damaged, and as one that is set aside a second time."""
    best, folder = KeepBest("val/loss"), sharded / "checkpoints"
    best.offer(sharded, 3.0, 4)
    assert is_sharded_checkpoint(folder / "best.ckpt")
    shutil.copytree(folder / "00000004.ckpt", folder / "00000006.ckpt")
    best.offer(sharded, 2.0, 6)  # a folder for a folder
    shutil.copy(saved / "whole/checkpoints/00000004.ckpt", folder / "00000008.ckpt")
    best.offer(sharded, 1.0, 8)  # a file for a folder
    assert (folder / "best.ckpt").is_file()
    best.offer(sharded, 0.5, 6)
    assert is_sharded_checkpoint(folder / "best.ckpt")
    assert not list(folder.glob(".*"))
    for name in ("00000006.ckpt", "00000008.ckpt"):
        remove(folder / name)
    (folder / "00000004.ckpt" / SHARDS).unlink()
    ranks("train-diffusion", *OPTIONS, f"latents={pipeline}/runs/latents", "run=sharded", world=1)  # whole files
    assert (folder / "00000004.ckpt").is_file()


def test_a_save_that_fails_says_so(sharded, pipeline, monkeypatch):
    def unsealed(folder, metadata):
        raise OSError(28, "No space left on device", str(folder))

    monkeypatch.setattr("ldm.training.sharded_saves.seal", unsealed)
    line = fails("train-diffusion", *OPTIONS, *SHARDED, f"latents={pipeline}/runs/latents", "run=full")
    assert "could not be saved" in line
    assert "make room, then run the same command" in line
    assert not checkpoints.saved(Path("runs/full"))


@pytest.mark.slow
def test_four_ranks_save_two_go_on_and_then_one(ldm, pipeline):
    options = [*OPTIONS, "+optimizer.eps=1e-3", f"latents={pipeline}/runs/latents", "global_batch=12"]
    options += ["power_ema=[0.1]", "keep_best=val/loss"]
    ldm("train-diffusion", *options, "batch_size=12", "run=one", "steps=10")
    ranks("train-diffusion", *options, *SHARDED, "run=parts", world=4)
    shutil.copytree("runs/parts", "runs/whole")
    ranks("train-diffusion", *options, *SHARDED, "trainer.shard_within=1", "run=parts", "steps=6", world=2)
    ranks("train-diffusion", *options, *SHARDED, "run=parts", "steps=8", world=1)
    ldm("train-diffusion", *options, "run=parts", "steps=10")  # without fsdp, from shards
    ranks("train-diffusion", *options, SHARDED[0], "run=whole", "steps=10", world=2)  # whole files, from shards
    for run in ("parts", "whole"):
        assert_close_weights("runs/one", f"runs/{run}", "diffusion", rtol=1e-5, atol=1e-5)
        mine, ones = (checkpoint(f"runs/{r}", "diffusion")["power_averages"] for r in (run, "one"))
        assert mine["updates"] == ones["updates"]
        for name, tensor in ones["averages"]["0.1"].items():
            torch.testing.assert_close(mine["averages"]["0.1"][name], tensor, rtol=1e-5, atol=1e-5)
    assert checkpoints.read(Path("runs/parts/checkpoints/best.ckpt"), "diffusion")


@pytest.mark.parametrize(
    ("kills", "world"),
    [
        pytest.param(4, 2, marks=pytest.mark.slow),
        pytest.param(50, 1, marks=pytest.mark.long),
        pytest.param(50, 4, marks=pytest.mark.long),
    ],
)
def test_kills_in_the_middle_of_saves_lose_nothing(tmp_path, pipeline, kills, world):
    """It saves after each batch, so that most of the time it saves: what was there stays, and is whole."""
    options = [*OPTIONS, *SHARDED, f"latents={pipeline}/runs/latents", "every=1", "trainer.limit_val_batches=0"]
    steps, kept = 10 * kills, 0

    def begin():
        return start_ranks(tmp_path, "train-diffusion", [*options, f"steps={steps}", "run=killed"], world)

    def progress():
        return newest(tmp_path / "runs/killed")

    def again():
        nonlocal steps
        steps += 10 * kills

    for _ in killed_often(begin, progress, again, kills, most=8):
        assert newest(tmp_path / "runs/killed") >= kept
        kept = newest(tmp_path / "runs/killed")
        for file in checkpoints.saved(tmp_path / "runs/killed"):
            checkpoints.read(file, "diffusion")
    succeeds(start_ranks(tmp_path, "train-diffusion", [*options, f"steps={steps}", "run=whole"], world))
    assert_equal(*(checkpoint(tmp_path / f"runs/{r}", "diffusion")["state_dict"] for r in ("killed", "whole")))
    assert not list((tmp_path / "runs/killed/checkpoints").glob(".*"))


def newest(run):
    file = checkpoints.newest(run)
    return 0 if file is None else int(file.stem)
