"""What `ldm train-diffusion` needs for a student: its teacher, and whether the two fit."""

import logging
import os
import pydoc
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ldm.card import build_from_card, learned_guidance
from ldm.checkpoint import LoadedDiffusion, load_diffusion
from ldm.condition import Condition
from ldm.conditioning.labels import Labels
from ldm.conditioning.text import Text
from ldm.diffusion.coupling import Taught
from ldm.diffusion.objective import Objective
from ldm.diffusion.path import VEPath
from ldm.diffusion.progressive import Progressive
from ldm.diffusion.student import Student, Teacher, guides
from ldm.latents import LatentStats
from ldm.runtime.arguments import hints_of
from ldm.runtime.targets import TARGET

if TYPE_CHECKING:
    from ldm.commands.train_diffusion import TrainDiffusionOptions
    from ldm.data.encoded_images import Latents

log = logging.getLogger(__name__)

ANY = 2  # codes, before the latents have said how many
STEMS = {"input_blocks.0.0.weight", "x_embedder.proj.weight"}  # first convolutions: channels beside x_t come last
# weights that start at zero, and that a teacher need not have
FURTHER = ("second_embed.", "guidance_embed.", "pooled_embed.")


def load_teacher(options: "TrainDiffusionOptions") -> LoadedDiffusion:
    """Whom teacher= names; ValueError if the objective has nobody to teach."""
    if options.objective.student is None:
        raise ValueError(f"teacher={options.teacher} would teach nobody: choose objective=progressive or consistency")
    teacher = load_diffusion(str(options.teacher), trust=options.trust)
    if teacher.objective.of_codes:
        raise ValueError(f"teacher={options.teacher} makes codes, and students are of latents: choose another")
    return teacher


def learned_of(
    options: "TrainDiffusionOptions", teacher: LoadedDiffusion | None, codes: int | None = ANY
) -> dict[str, Any]:
    """The objective's arguments, as a card has them; codes: of latents that are codes, how many to choose from."""
    return options.objective.card(None if teacher is None else teacher.card["objective"], codes)


def net_of(options: "TrainDiffusionOptions", teacher: LoadedDiffusion | None) -> dict[str, Any]:
    """The network's node: net=teacher is the teacher's."""
    if options.net:
        return options.net
    if teacher is None:
        raise ValueError("net=teacher is a student's, whose teacher= is named: choose another net=")
    return dict(teacher.card["net"])


def reflow_card(options: "TrainDiffusionOptions", objective: Objective, cache: "Latents", run: Path) -> dict[str, Any]:
    """What a student of cached pairs says of itself; nothing for other latents.

    Raises:
        ValueError: if the latents are pairs and the objective is for images, or the other way round.
    """
    pairs, taught = cache.pairs, isinstance(objective.coupling, Taught)
    if taught and pairs is None:
        raise ValueError(
            f"objective=reflow learns pairs, not the images of latents={options.latents}: ldm cache-pairs first"
        )
    if pairs is None:
        return {}
    if not taught:
        raise ValueError(f"latents={options.latents} are a teacher's pairs: choose objective=reflow, or others")
    method = {TARGET: f"{Taught.__module__}.{Taught.__name__}", "pairs": pairs.train, "sampler": pairs.sampler}
    path = os.path.relpath(Path(str(options.latents), pairs.teacher_path).resolve(), run.resolve())
    learned = {"guidance": pairs.guidance, "guidance_max": None}
    return {"student": {"method": method, "teacher": pairs.teacher, "teacher_path": path, **learned}}


def check_latents(said: str, card: dict[str, Any], latents: str | None, cache: "Latents") -> None:
    """ValueError that begins with `said`, as teacher=runs/flow, if a model was trained on other latents or classes."""
    pairs = (
        ("latents of another autoencoder", card["autoencoder"], cache.autoencoder),
        ("latents of another shape", card["latent_shape"], list(cache.latent_shape)),
        (
            "latents normalised otherwise",
            LatentStats.of(card["stats"]).card(),  # in float32, as they are used
            cache.stats.card(),
        ),
        ("other classes", list(card["class_names"]), list(cache.class_names)),
    )
    for what, its, ours in pairs:
        if its != ours:
            raise ValueError(f"{said} was trained on {what} than those of latents={latents or 'null'}")


@dataclass(frozen=True)
class Schooling:
    """A student, and what its training differs in from that of any network.

    student: None where the objective has a closed form
    net:     further arguments of its network
    card:    what its checkpoints say, beside
    """

    student: Student | None
    net: dict[str, Any]
    card: dict[str, Any]

    def told(self, condition: Condition) -> Condition:
        """A condition with what the network is told beside, in training."""
        parts = {"second_time": ("s", 0.0), "takes_guidance": ("w", 1.0)}
        rows = len(condition.label)
        return condition._replace(**{parts[key][0]: torch.full((rows,), parts[key][1]) for key in self.net})

    def start(
        self,
        options: "TrainDiffusionOptions",
        net: nn.Module,
        teacher: LoadedDiffusion | None,
        cache: "Latents",
    ) -> None:
        """Give a network the weights that a new run starts with: those of init=, which for a student is of the same
        latents, or, in progressive distillation, of the teacher."""
        if options.init is not None:
            loaded, said = load_diffusion(options.init, trust=options.trust), f"init={options.init}"
            if self.student is not None or cache.pairs is not None:
                check_latents(said, loaded.card, options.latents, cache)
            elif (loaded.stats.whitening is None) != (cache.stats.whitening is None):
                ours, theirs = (_how(stats) for stats in (cache.stats, loaded.stats))
                log.warning("%s learned latents that are %s, and latents=%s are %s: it learns their directions anew",
                            said, theirs, options.latents or "null", ours)  # fmt: skip
            start_from(loaded, net, said)
        elif teacher is not None and isinstance(self.student, Progressive):
            start_from(teacher, net, f"teacher={options.teacher}")


def _how(stats: LatentStats) -> str:
    return "normalised by channel" if stats.whitening is None else "whitened"


def schooling_of(
    options: "TrainDiffusionOptions",
    objective: Objective,
    teacher: LoadedDiffusion | None,
    null: Condition,
    run: Path,
) -> Schooling:
    """How the objective's student is trained; null is what its network is told where nothing is said.

    Raises:
        ValueError: if the student can't learn from this teacher, or not on this trainer.
    """
    net = {"second_time": True} if objective.average else {}
    node = options.objective.student
    if node is None:
        if objective.average:
            raise ValueError("objective.average=true is learned by a student: choose objective=meanflow")
        return Schooling(None, net, {})
    make = build_from_card({**node, "_partial_": True}, options.trust)
    takes = hints_of(make.func).get("teacher")
    if teacher is None and takes is Teacher:
        raise ValueError(f"{make.func.__name__} learns from a teacher: pass teacher=RUN")
    if teacher is not None and takes is None:
        raise ValueError(f"teacher={options.teacher}: {make.func.__name__} learns without one: leave it out, or init=")
    if "derivative" in hints_of(make.func):
        _check_derivative(options, node.get("derivative", "exact"))
    asked, most = float(node.get("guidance", 1.0)), node.get("guidance_max")
    given: dict[str, Any] = {"objective": objective} | ({"null": null} if "null" in hints_of(make.func) else {})
    if teacher is not None:
        check_guided(str(options.teacher), teacher.card, asked, most)
        given["teacher"] = Teacher(net=teacher.net, objective=teacher.objective, null=teacher.null)
        if make.func is Progressive:
            _check_same(options, objective, teacher)
        if asked == 1 and most is None:
            asked, most = learned_guidance(teacher.card)
    if teacher is None and guides(asked, most) and options.label_dropout == 0:
        raise ValueError(
            f"objective.student.guidance={asked:g} is away from what the network says without labels: pass "
            "label_dropout= more than 0"
        )
    net |= {"takes_guidance": True} if most is not None else {}
    whose = {
        "teacher": None if teacher is None else teacher.fingerprint,
        "teacher_path": None
        if teacher is None
        else os.path.relpath(Path(str(options.teacher)).resolve(), run.resolve()),
    }
    card = {"student": {"method": node, **whose, "guidance": asked, "guidance_max": most}}
    return Schooling(make(**given), net, card)


def _check_derivative(options: "TrainDiffusionOptions", method: str | float) -> None:
    if method != "exact":
        return
    for key, value in (("compile", options.trainer.compile), ("strategy", options.trainer.strategy == "fsdp")):
        if value:
            raise ValueError(
                f"trainer.{key}={getattr(options.trainer, key)} leaves the network no forward mode: pass "
                "objective.student.derivative=0.02, the step of a difference"
            )


def check_guided(
    path: str, card: dict[str, Any], asked: float, most: float | None, key: str = "objective.student.guidance"
) -> None:
    """ValueError that names `key` if a teacher can't be guided by this scale, or from it to `most`."""
    lowest, highest = learned_guidance(card)
    wanted = f"{key}={asked:g}" + (f" to {most:g}" if most is not None else "")
    if (asked, most) == (1, None):
        if highest is not None:
            raise ValueError(
                f"teacher={path} takes guidance of {lowest:g} to {highest:g}: pass {key}= (and "
                "guidance_max=) within that"
            )
    elif highest is not None:
        if asked < lowest or (most or asked) > highest:
            raise ValueError(f"{wanted}: teacher={path} takes guidance of {lowest:g} to {highest:g} alone")
    elif lowest != 1:
        raise ValueError(f"{wanted}: teacher={path} has learned guidance of {lowest:g} already: leave it out")
    elif card["label_dropout"] == 0:
        raise ValueError(f"{wanted}: teacher={path} was never trained without labels (label_dropout=0): leave it out")


def _check_same(options: "TrainDiffusionOptions", objective: Objective, teacher: LoadedDiffusion) -> None:
    """What progressive distillation takes over from the teacher."""
    card, own = teacher.card["objective"], options.objective.card(teacher.card["objective"])
    for key in ("path", "parameterization", "unit_input"):
        if own.get(key, False) != card.get(key, False):
            raise ValueError(
                f"teacher={options.teacher} was trained with objective.{key}={card.get(key, False)}, which its student "
                "shares: leave it null"
            )
    if isinstance(objective.path, VEPath):
        raise ValueError(
            f"teacher={options.teacher} walks EDM's path, of whose even steps in t the last makes nearly the whole "
            "image: choose objective=consistency, or a teacher on another path"
        )
    if objective.average:
        raise ValueError("objective.average=true is of average velocities, not of a teacher's steps: leave it out")


def start_from(loaded: LoadedDiffusion, net: nn.Module, said: str) -> None:
    """Copy a network's weights; a second time, a guidance and channels beside x_t that it does not know start at zero.

    Raises:
        ValueError: that begins with `said`, as init=runs/flow, if it has another shape.
    """
    for key in ("positions", "time_periods", "head_channels"):  # of a DiT, whose weights' shapes do not tell them
        ours, theirs = (getattr(one, key, None) for one in (net, loaded.net))
        if None not in (ours, theirs) and ours != theirs:
            raise ValueError(f"{said} was trained with net.{key}={theirs}, and not with {ours}: pass it")
    own, given = net.state_dict(), loaded.net.state_dict()
    further = {name: tensor for name, tensor in own.items() if name.startswith(FURTHER)}
    for name in STEMS & own.keys() & given.keys():
        more = own[name].shape[1] - given[name].shape[1]
        if more > 0:
            given[name] = torch.cat([given[name], torch.zeros_like(own[name][:, :more])], dim=1)
    try:
        net.load_state_dict(further | given)
    except RuntimeError:
        shape = {key: value for key, value in loaded.card["net"].items() if key != TARGET}
        raise ValueError(f"{said} has another shape: choose the net= of {shape}") from None


def condition_of(options: "TrainDiffusionOptions", teacher: LoadedDiffusion | None) -> dict[str, Any]:
    """The node of what the network is told: a student is told what its teacher is.

    Raises:
        ValueError: if another condition is asked for.
    """
    taught = None if teacher is None else teacher.card.get("condition")
    if taught is None or options.condition == taught:
        return read_alike(options)
    if options.condition[TARGET] != f"{Labels.__module__}.{Labels.__name__}":
        raise ValueError(
            f"teacher={options.teacher} is told {taught[TARGET]}: leave condition= out, which is then the same"
        )
    return taught


def read_alike(options: "TrainDiffusionOptions") -> dict[str, Any]:
    """The condition's node, with the words, or the encoder, that init= has learned to read."""
    node = options.condition
    if options.init is None or not issubclass(pydoc.locate(node[TARGET]), Text):  # type: ignore[arg-type]
        return node
    before = load_diffusion(options.init, trust=options.trust).card.get("condition") or {}
    learned = ("words", "vocabulary", "tokens", "encoder")
    same = before.get(TARGET) == node[TARGET]
    return node | {key: before[key] for key in learned if key in before} if same else node
