"""Few-step students through their commands: what they start from, what they say of themselves, what does not fit."""

import json
from pathlib import Path

import pytest
import torch
from support.refusals import contents
from support.tiny import CPU, TINY_DIFFUSION, fails

import ldm as package
from ldm.checkpoint import load_diffusion, newest, read
from ldm.condition import Condition
from ldm.data.cache_reader import CachedMoments, LatentCache
from ldm.diffusion.noise import IndexedNoise

TRAIN = [word for word in TINY_DIFFUSION if not word.startswith(("net.", "sampler"))] + CPU
PROGRESSIVE = ["train-diffusion", *TRAIN, "objective=progressive", "net=teacher"]
TAUGHT = [*PROGRESSIVE, "teacher=runs/diffusion"]


def stamp(run="samples"):
    return json.loads(Path(f"runs/{run}/sample.json").read_text())


def test_a_progressive_student_starts_as_its_teacher_and_says_whose_it_is(there):
    there(*TAUGHT, "run=student", "objective.student.steps=2", "objective.student.guidance=3", "optimizer.lr=1e-12")
    teacher, student = load_diffusion("runs/diffusion"), load_diffusion("runs/student", "raw")
    for name, weight in teacher.net.state_dict().items():
        torch.testing.assert_close(student.net.state_dict()[name], weight, rtol=0, atol=1e-9)
    said = student.card["student"]
    assert said["method"]["_target_"] == "ldm.diffusion.progressive.Progressive"
    assert (said["teacher"], said["guidance"], said["guidance_max"]) == (teacher.fingerprint, 3.0, None)
    assert Path("runs/student", said["teacher_path"]).resolve() == Path("runs/diffusion").resolve()
    assert student.card["objective"]["path"] == teacher.card["objective"]["path"]
    there("sample", "model=runs/student", "num=2")
    found = stamp()
    assert (found["evaluations"], found["guidance"], found["sampler"]["steps"]) == (2, 1.0, 2)
    assert found["student"] == said
    assert "would guide again a student that has learned 3" in fails(
        "sample", "run=x", "model=runs/student", "guidance=2"
    )


def test_a_student_takes_guidance_as_a_condition(there):
    there(*TAUGHT, "run=told", "objective.student.guidance_max=4", "optimizer.lr=0.01")
    there("sample", "model=runs/told", "num=2", "run=usual")
    there("sample", "model=runs/told", "num=2", "run=weaker", "guidance=1.0")
    assert (stamp("usual")["guidance"], stamp("usual")["evaluations"]) == (2.0, 4)
    net = load_diffusion("runs/told").net
    assert net.guidance_embed[2].weight.abs().sum() > 0  # it has learned from zero on
    x_t, t, y = torch.randn(1, *load_diffusion("runs/told").card["latent_shape"]), torch.ones(1), torch.zeros(1).long()
    assert not torch.equal(*(net(x_t, t, Condition(y, w=w * torch.ones(1))) for w in (1, 3)))
    assert "guidance=5 must lie in [1, 4]" in fails("sample", "run=x", "model=runs/told", "guidance=5")
    assert "takes guidance= as a condition" in fails("sample", "run=x", "model=runs/told", "guidance_rescale=0.5")
    next_one = [*PROGRESSIVE, "teacher=runs/told", "objective.student.steps=2"]
    assert "takes guidance of 1 to 4: pass objective.student.guidance=" in fails(*next_one, "run=x")
    there(*next_one, "run=next", "objective.student.guidance=2")
    assert load_diffusion("runs/next").card["student"]["guidance"] == 2.0


@pytest.mark.parametrize("start", [[], ["init=runs/diffusion"]], ids=["from scratch", "from a flow"])
def test_meanflow_trains_and_samples_by_one_evaluation(there, start):
    net = ["net.model_channels=24"]
    there("train-diffusion", *TRAIN, *net, *start, "run=mean", "objective=meanflow", "objective.student.same=0.25")
    loaded = load_diffusion("runs/mean")
    assert loaded.card["net"]["second_time"]
    assert loaded.net.second_embed[2].weight.abs().sum() > 0  # it has learned from zero on
    there("sample", "model=runs/mean", "num=2")
    found = stamp()
    assert (found["evaluations"], found["sampler"]["function"]["_target_"]) == (1, "ldm.diffusion.samplers.jump")
    there("sample", "model=runs/mean", "num=2", "run=ode", "sampler=heun", "sampler.steps=2", "guidance=1")  # as a flow
    assert stamp("ode")["evaluations"] == 4
    assert package.load("runs/mean").sample(n=1, seed=1).shape == (1, 3, 32, 32)


def test_meanflows_differences_and_guidance(there):
    words = [*TRAIN, "net.model_channels=24", "objective=meanflow", "objective.student.same=0.25"]
    there("train-diffusion", *words, "run=mean", "objective.student.derivative=exact", "objective.student.guidance=2")
    assert load_diffusion("runs/mean").card["student"]["guidance"] == 2.0
    there("sample", "model=runs/mean", "num=2")
    assert stamp()["guidance"] == 1.0


@pytest.mark.parametrize(
    "taught", [[], ["teacher=runs/diffusion", "objective.student.guidance=2"]], ids=["alone", "taught"]
)
def test_consistency_trains_and_samples(there, taught):
    words = [*TRAIN, "net.model_channels=24", "objective=consistency", "objective.student.warmup=2", *taught]
    there("train-diffusion", *words, "run=consistent")
    there("sample", "model=runs/consistent", "num=2", "run=two")
    there("sample", "model=runs/consistent", "num=2", "run=one", "sampler=jump")
    assert (stamp("two")["evaluations"], stamp("one")["evaluations"]) == (2, 1)
    assert (stamp("two")["student"]["teacher"] is None) == (not taught)
    card = read(newest(Path("runs/consistent")), "diffusion")
    assert not [name for name in card["state_dict"] if "teacher" in name]  # it is not saved again


PAIRS = [
    "cache-pairs",
    "teacher=runs/diffusion",
    "num=24",
    "held_out=8",
    "shard_size=10",
    "batch_size=7",
    "sampler.steps=2",
]


def test_reflow_learns_the_noise_and_what_the_teacher_made_of_it(there):
    there(*PAIRS, "run=pairs", "slice=1/2")
    assert not Path("runs/pairs/manifest.json").exists()
    there(*PAIRS, "run=pairs", "slice=0/2")
    cache = LatentCache("runs/pairs", "full")
    model = package.load("runs/diffusion")
    generator = model.generator(steps=2, seed=0)
    for split, first, index in (("train", 0, 0), ("train", 0, 21), ("val", 24, 5)):
        moments, label, noise, _ = CachedMoments(cache, split).__getitems__([(3, index)])
        assert label.tolist() == [(first + index) % 10]
        latents, _ = generator.latents([first + index], label)
        stored = cache.stats.normalize(moments.float().chunk(2, dim=1)[0])
        torch.testing.assert_close(stored, latents, rtol=0, atol=5e-3)  # half precision
        assert torch.equal(noise, IndexedNoise(0, [first + index]).draw(model.latent_shape))
        assert moments.chunk(2, dim=1)[1].abs().max() == 0
    there("train-diffusion", *TRAIN, "net.model_channels=24", "run=reflow", "objective=reflow", "latents=runs/pairs",
          "init=runs/diffusion")  # fmt: skip
    said = load_diffusion("runs/reflow").card["student"]
    assert (said["teacher"], said["guidance"]) == (load_diffusion("runs/diffusion").fingerprint, 2.0)
    there("sample", "model=runs/reflow", "num=2")
    assert (stamp()["evaluations"], stamp()["guidance"]) == (1, 1.0)
    there("report", "runs/reflow")
    page = Path("runs/reflow/report.html").read_text()
    assert "runs/pairs" in page
    assert "runs/diffusion" in page
    assert "are a teacher's pairs" in fails("train-diffusion", *TRAIN, "run=x", "latents=runs/pairs")
    assert "learns pairs, not the images of" in fails("train-diffusion", *TRAIN, "run=x", "objective=reflow")
    assert "shards of another cache" in fails(*PAIRS, "run=pairs", "guidance=1")
    assert "24 + 8 pairs" not in fails(*PAIRS, "run=more", "teacher=runs/none")


def test_the_same_command_resumes_and_another_teacher_is_another_run(there):
    words = [*TAUGHT, "run=student"]
    there(*words, "steps=2")
    first = load_diffusion("runs/student").fingerprint
    there(*words, "steps=4")
    assert load_diffusion("runs/student").fingerprint != first
    there(*TAUGHT, "run=teacher", "steps=2", "optimizer.lr=0.01")
    line = fails(*PROGRESSIVE, "teacher=runs/teacher", "run=student", "steps=6")
    assert "teacher" in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["objective=progressive"], "objective.path is null, which is the teacher's: pass teacher=RUN"),
        (["net=teacher"], "net=teacher is a student's, whose teacher= is named"),
        (["teacher=runs/diffusion"], "would teach nobody: choose objective=progressive or consistency"),
        (["objective=meanflow", "teacher=runs/diffusion"], "MeanFlow learns without one"),
        (["objective=meanflow", "objective.average=false"], "pass objective.average=true"),
        (["+objective.average=true"], "choose objective=meanflow"),
        (["objective=meanflow", "objective.student.same=2"], "objective.student.same=2 must be"),
        (["objective=meanflow", "objective.student.sam=0.5"], "objective.student.sam is no key"),
        (
            ["objective=meanflow", "trainer.compile=true", "objective.student.derivative=exact"],
            "pass objective.student.derivative=0.02",
        ),
        (["objective=consistency", "objective.parameterization=velocity"], "parameterization=v"),
        (["objective=progressive", "teacher=runs/none"], "runs/none holds no checkpoint"),
        (["objective=progressive", "teacher=runs/autoencoder"], "holds an autoencoder"),
        (
            [
                "objective=progressive",
                "teacher=runs/diffusion",
                "objective.path={_target_:ldm.diffusion.path.CosinePath}",
            ],
            "teacher=runs/diffusion was trained with objective.path=",
        ),
        (["objective=progressive", "teacher=runs/diffusion", "objective.student.steps=0"], "objective.student.steps=0"),
        (["objective=progressive", "teacher=runs/diffusion"], "teacher=runs/diffusion has another shape"),
    ],
)
def test_what_does_not_fit_is_one_line(there, words, said):
    before = contents(Path("runs"))
    assert said in fails("train-diffusion", *TRAIN, "run=wrong", *words)
    assert contents(Path("runs")) == before


def test_a_chain_takes_no_guidance_that_its_teacher_has_not(there):
    there(*TAUGHT, "run=baked", "objective.student.guidance=3", "objective.student.steps=4", "optimizer.lr=1e-12")
    there(*TAUGHT, "run=told", "objective.student.guidance_max=4", "objective.student.steps=4", "optimizer.lr=1e-12")
    before = contents(Path("runs"))
    baked, told = ["distill", "run=x", "teacher=runs/baked"], ["distill", "run=x", "teacher=runs/told"]
    assert "guidance=2: teacher=runs/baked has learned guidance of 3 already" in fails(*baked, "guidance=2")
    assert "teacher=runs/told takes guidance of 1 to 4 alone" in fails(*told, "guidance=5")
    assert "guidance=8 must lie in [1, 4]" in fails(
        *TAUGHT, "run=x", "objective.student.guidance_max=4", "guidance=8", "objective.student.steps=2"
    )
    assert contents(Path("runs")) == before


def test_a_student_s_start_and_guidance_are_held_to_its_data(there):
    checkpoint = torch.load(newest(Path("runs/diffusion")), weights_only=True)
    torch.save(checkpoint | {"ldm": checkpoint["ldm"] | {"autoencoder": "0" * 16}}, "start.ckpt")
    mean = ["train-diffusion", *TRAIN, "run=x", "objective=meanflow"]
    line = fails(*mean, "net.model_channels=24", "init=start.ckpt")
    assert "init=start.ckpt was trained on latents of another autoencoder than those of latents=runs/latents" in line
    unlabelled = fails(*mean, "objective.student.guidance=2", "label_dropout=0")
    assert "objective.student.guidance=2 is away from what the network says without labels" in unlabelled


def test_pairs_are_of_a_sampler_without_noise(there):
    line = fails(*PAIRS, "run=noisy", "sampler=ddpm")
    assert "the sampler draws noise on its way" in line
    assert not Path("runs/noisy").exists()


def test_a_teacher_of_other_latents_or_classes_is_refused(there, pipeline):
    file = newest(Path("runs/diffusion"))
    checkpoint = torch.load(file, weights_only=True)
    card = checkpoint["ldm"]
    for key, value, said in (
        ("autoencoder", "0" * 16, "latents of another autoencoder"),
        ("stats", {"mean": [0.0] * 4, "std": [1.0] * 4}, "latents normalised otherwise"),
        ("class_names", [f"class {i}" for i in range(10)], "other classes"),
    ):
        torch.save(checkpoint | {"ldm": card | {key: value}}, "teacher.ckpt")
        line = fails(*PROGRESSIVE, "run=wrong", "teacher=teacher.ckpt")
        assert f"teacher=teacher.ckpt was trained on {said} than those of latents=runs/latents" in line
    torch.save(checkpoint | {"ldm": card | {"label_dropout": 0.0}}, "teacher.ckpt")
    guided = [*PROGRESSIVE, "run=wrong", "teacher=teacher.ckpt", "objective.student.guidance=2"]
    assert "was never trained without labels" in fails(*guided)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["steps=[8,3]"], "3 is not half of 8"),
        (["latents=runs/none"], "runs/none"),
        (["steps=[]"], "steps=[]"),
        (['train=["stepz=3"]'], "ldm train-diffusion, which ldm distill calls"),
        (["teacher=runs/none"], "runs/none holds no checkpoint"),
    ],
)
def test_a_chain_that_can_t_be_is_refused_before_it_begins(there, words, said):
    before = contents(Path("runs"))
    assert said in fails("distill", "run=chain", "teacher=runs/diffusion", *words)
    assert contents(Path("runs")) == before


@pytest.mark.slow
def test_a_chain_halves_and_goes_on_where_it_was(there):
    train = f"train=[{','.join(map(repr, TRAIN))}]"
    words = ["distill", "run=chain", "teacher=runs/diffusion", "guidance=2", train]
    there(*words, "steps=[2]")
    first = newest(Path("runs/chain/2")).stat().st_mtime_ns
    there(*words, "steps=[2,1]")
    assert newest(Path("runs/chain/2")).stat().st_mtime_ns == first
    cards = [load_diffusion(f"runs/chain/{n}").card for n in (2, 1)]
    assert [card["student"]["guidance"] for card in cards] == [2.0, 2.0]
    assert cards[1]["student"]["teacher"] == load_diffusion("runs/chain/2").fingerprint
    assert cards[1]["student"]["method"]["guidance"] == 1
    there("sample", "model=runs/chain/1", "num=2")
    assert (stamp()["evaluations"], stamp()["guidance"]) == (1, 1.0)
