"""Models from elsewhere into a run folder, and ours into diffusers' format."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from annotated_types import Le
from pydantic import model_validator

from ldm.card import check_card, check_trust
from ldm.checkpoint import (
    CARD,
    FOLDER,
    LoadedAutoencoder,
    export_autoencoder,
    export_diffusion,
    find,
    load_autoencoder,
    load_diffusion,
)
from ldm.commands.options import ObjectiveOptions, ResultOptions, Text
from ldm.commands.recipes import lineage_of
from ldm.data.cache_reader import LatentCache
from ldm.exchange import dit_weights, unet_weights
from ldm.exchange.autoencoder_weights import export_diffusers, import_autoencoder, normalising
from ldm.exchange.diffusers_folders import from_hub
from ldm.exchange.pipeline_folder import PipelineExport
from ldm.exchange.schedulers import Named
from ldm.exchange.weight_files import State, read_tensors
from ldm.generate.loading import load_stages
from ldm.models.dit import DiT
from ldm.models.unet import UNet
from ldm.report.facts import Lineage
from ldm.report.model_card import SAMPLES, Exported, model_card, sample_picture
from ldm.runtime.files import CONFIG, atomic_write
from ldm.runtime.hub import is_hub_id
from ldm.runtime.ranges import Count, Positive
from ldm.weights import weights_fingerprint

NEVER_TRAINED: dict[str, Any] = {"batches_seen": 0, "images_seen": 0, "rollbacks": 0, "config": {}}
FILE = "00000000.ckpt"
LATENT_SIZE = 32  # where a source does not tell
PARTS = {"autoencoder": ["vae"], "diffusion": ["unet", "transformer"]}  # of a pipeline on a hub
LatentSize = Annotated[Count, Le(2048)]


class ConvertOptions(ResultOptions):
    """conf/convert.yaml, which says what each key means."""

    source: Text | None
    model: Text | None
    what: Literal["autoencoder", "diffusion"]
    to: Literal["ldm", "diffusers", "dit"]
    objective: ObjectiveOptions
    scaling_factor: Positive | None
    latents: Text | None
    autoencoder: Text | None
    num_heads: Count | None
    head_channels: Count | None
    num_heads_upsample: Count | None
    attention_order: Literal["legacy", "new"] | None
    latent_size: LatentSize | None
    null_class: bool
    scheduler: Named | None

    def origin(self) -> str:
        """What a card says of where a model comes from: its id on a hub, or its file's name."""
        source = self.source or ""
        return source if is_hub_id(source) else Path(source).name

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.source is None) == (self.model is None):
            raise ValueError("pass model=RUN, which goes out whole, or source=, a part that comes in or goes out")
        if self.to == "dit" and self.what != "diffusion":
            raise ValueError("to=dit writes a DiT's weights: pass what=diffusion")
        if self.model is not None and self.to == "dit":
            raise ValueError("to=dit writes a part: name it by source=")
        if self.scheduler is not None and self.model is None:
            raise ValueError(f"scheduler={self.scheduler} belongs to a whole pipeline: pass model=RUN")
        return self


def main(options: ConvertOptions, run: Path) -> None:
    action = {
        ("autoencoder", "ldm"): autoencoder_to_ldm,
        ("autoencoder", "diffusers"): autoencoder_to_diffusers,
        ("diffusion", "ldm"): diffusion_to_ldm,
        ("diffusion", "diffusers"): diffusion_elsewhere,
        ("diffusion", "dit"): diffusion_elsewhere,
    }
    options.keep_others(run)  # before a large file is read for nothing
    foreign = [name for name in (FOLDER, "config.json", "model_index.json") if (run / name).exists()]
    if foreign and not (run / CONFIG).exists() and not options.overwrite:
        raise ValueError(
            f"{run} holds {foreign[0]}, which no `ldm convert` wrote: choose another run=, or pass overwrite=true"
        )
    if options.model is not None:
        out = model_to_diffusers if options.to == "diffusers" else model_to_file
        out(options, options.model, run)
        return
    assert options.source is not None
    source = Path(options.source)
    if options.to == "ldm" and is_hub_id(options.source):
        source = from_hub(options.source, *PARTS[options.what])
    action[options.what, options.to](options, source, run)


def model_to_file(options: ConvertOptions, model: str, run: Path) -> None:
    """All that a run's last checkpoint holds, sharded or not, in one file."""
    file, checkpoint = find(Path(model), None)
    card = checkpoint[CARD]
    if "autoencoder_path" in card:
        _point_to(card, "autoencoder_path", file.absolute().parents[1], run)
    if (card.get("student") or {}).get("teacher_path"):
        _point_to(card["student"], "teacher_path", file.absolute().parents[1], run)
    options.begin(run)
    with atomic_write(run / FOLDER / FILE) as stream:
        torch.save(checkpoint, stream)
    print(f"{run / FOLDER / FILE} holds all of {file}")


def _point_to(card: dict[str, Any], key: str, before: Path, run: Path) -> None:
    """Have a path that is relative to one run folder lead to the same place from another."""
    card[key] = os.path.relpath((before / card[key]).resolve(), run.resolve())


def model_to_diffusers(options: ConvertOptions, model: str, run: Path) -> None:
    loaded, autoencoder = load_stages(model, "ema", options.autoencoder, options.trust)
    export = PipelineExport.of(loaded, autoencoder, options.scheduler)
    options.begin(run)
    write_model_card(loaded.run, run, export)
    export.write(run)
    print(f"diffusers pipeline in {run}: {export.scheduler.config['_class_name']}, {export.scheduler.steps} steps")
    print(f"licence: fill it in at the head of {run}/README.md; then `hf upload OWNER/NAME {run}` puts it on a hub")


def write_model_card(model: Path, run: Path, export: PipelineExport) -> None:
    """README.md of an export, and the picture in it, of what the model's run and those around it say."""
    try:
        lineage = lineage_of(model)
    except ValueError:  # a checkpoint that lies in no run's folder: nothing is known but its card
        lineage = Lineage(start=model, stages=())
    exported = Exported(
        name=run.name,
        scheduler=export.scheduler.config["_class_name"],
        steps=export.scheduler.steps,
        class_names=export.loaded.card["class_names"],
        resolution=export.loaded.card["latent_shape"][-1] * export.autoencoder.model.downsample_factor,
        guidance=export.index()["guidance_scale"],
        network="DiT" if export.part == "transformer" else "U-Net",
        codes=[str(code) for code in export.codes()],
        alone=not export.beyond and not export.further and export.loaded.card["net"].get("label_as") != "context",
    )
    picture = sample_picture(lineage)
    if picture is not None:
        with atomic_write(run / SAMPLES) as file:
            file.write(picture.read_bytes())
    with atomic_write(run / "README.md") as file:
        file.write(model_card(lineage, exported).encode())


def autoencoder_to_ldm(options: ConvertOptions, source: Path, run: Path) -> None:
    model, shape, scaling = import_autoencoder(source)
    about = {"kind": "autoencoder", "autoencoder": shape, "scaling": scaling, "imported_from": options.origin()}
    card = about | NEVER_TRAINED
    check_card(card)
    file = run / FOLDER / FILE
    options.begin(run)
    export_autoencoder(LoadedAutoencoder(file, model, card, weights_fingerprint(model)), file)
    print(f"autoencoder in {run}: {', '.join(f'{k}={v}' for k, v in shape.items())}")


def autoencoder_to_diffusers(options: ConvertOptions, source: Path, run: Path) -> None:
    loaded = load_autoencoder(source)
    scaling, state = scaling_of(options, loaded)
    loaded.model.load_state_dict(state)
    options.begin(run)
    resolution = (loaded.card.get("preprocessing") or {}).get("resolution")
    export_diffusers(loaded.model, loaded.card["autoencoder"], scaling, run, resolution)
    kind = "AutoencoderKL" if loaded.model.quantize is None else "VQModel"
    print(f"diffusers {kind} in {run}: {', '.join(scaling)} in config.json; {CARD} {loaded.fingerprint}")


def diffusion_to_ldm(options: ConvertOptions, source: Path, run: Path) -> None:
    if options.autoencoder is None:
        raise ValueError("what=diffusion needs autoencoder=RUN, the one that its latents come from (import it first)")
    check_trust([options.objective.card(), options.objective.sampling], options.trust)
    given = options.model_dump(include={"head_channels", "num_heads", "num_heads_upsample"}, exclude_none=True)
    autoencoder = load_autoencoder(options.autoencoder)
    net, shape, factor = imported_network(source, given, options)
    channels = autoencoder.card["autoencoder"]["latent_channels"]
    if shape["in_channels"] != channels:
        raise ValueError(
            f"{source} takes latents of {shape['in_channels']} channels, {options.autoencoder} makes {channels}"
        )
    side = options.latent_size or shape.get("latent_size", [LATENT_SIZE])[0]
    if side % net.downsample_factor:
        raise ValueError(f"latent_size={side} is no multiple of this network's factor {net.downsample_factor}")
    if shape.get("context_dim") is not None and shape.get("label_as") != "context":
        raise ValueError(f"{source} wants a context beside the label (a text's, say), which no command here gives")
    knows_null = options.null_class or isinstance(net, DiT)
    scaling = autoencoder.card.get("scaling") or {}
    factor = options.scaling_factor or factor or scaling.get("scaling_factor")
    if factor is None:
        raise ValueError("nothing says how these latents are scaled: pass scaling_factor=NUMBER")
    card = {
        "kind": "diffusion",
        "net": {"_target_": f"{type(net).__module__}.{type(net).__name__}"} | shape,
        "objective": options.objective.card(),
        "sampling": options.objective.sampling,
        "trust": list(options.trust),
        "label_dropout": 0.1 if knows_null and shape["num_classes"] > 1 else 0.0,  # what counts is whether
        "stats": {
            "mean": scaling.get("latents_mean") or [scaling.get("shift_factor") or 0.0] * channels,
            "std": [std / factor for std in scaling.get("latents_std") or [1.0] * channels],
        },
        "latent_shape": [channels, side, side],
        "class_names": [str(i) for i in range(shape["num_classes"])],
        "preprocessing": {"resolution": side * autoencoder.model.downsample_factor},
        "autoencoder": autoencoder.fingerprint,
        "autoencoder_path": os.path.relpath(autoencoder.path.resolve(), run.resolve()),
        "imported_from": options.origin(),
    } | NEVER_TRAINED
    check_card(card)
    options.begin(run)
    export_diffusion(net, card, run / FOLDER / FILE)
    print(f"diffusion model in {run}: {', '.join(f'{k}={v}' for k, v in shape.items())}; latents x {factor:g}")


def imported_network(
    source: Path, heads: dict[str, int], options: ConvertOptions
) -> tuple[UNet | DiT, dict[str, Any], float | None]:
    """A U-Net or a DiT, whichever a source holds, its constructor's arguments, and the factor of its latents."""
    if source.is_dir():
        tensors, folder = None, dit_weights.dit_folder(source)
    else:
        tensors = read_tensors(source)
        folder = source if dit_weights.holds_dit(tensors) else None
    if folder is None:
        return unet_weights.import_unet(source, heads, options.null_class, options.attention_order, tensors)
    return *dit_weights.import_dit(folder, tensors, heads), None


def diffusion_elsewhere(options: ConvertOptions, source: Path, run: Path) -> None:
    loaded = load_diffusion(source, trust=options.trust)
    net, shape = loaded.net, {key: value for key, value in loaded.card["net"].items() if key != "_target_"}
    if not isinstance(net, UNet | DiT) or (options.to == "dit" and isinstance(net, UNet)):
        place = {"dit": "DiT's authors have not", "diffusers": "diffusers has not"}[options.to]
        raise ValueError(f"{source} holds a {type(net).__name__}, which {place}")
    size = loaded.card["latent_shape"][-1]
    if isinstance(net, DiT):
        dit_weights.check_export(shape, options.to)
        options.begin(run)
        dit_weights.export_dit(net, shape, run, options.to)
    else:
        unet_weights.check_export(shape, size)
        options.begin(run)
        unet_weights.export_unet(net, shape, run, size)
    what = "U-Net" if isinstance(net, UNet) else "DiT"
    what = f"diffusers {what}" if options.to == "diffusers" else "dit.pt, for DiT(learn_sigma=False),"
    print(f"{what} in {run}: timesteps 1000 t - {net.time_offset:g}, latents normalised as {source}'s card says")


def scaling_of(options: ConvertOptions, loaded: LoadedAutoencoder) -> tuple[dict[str, Any], State]:
    """What a user of the export must scale latents with, measured on a cache, given, or as it was imported; and the
    weights, which whiten as that cache does."""
    state = loaded.model.state_dict()
    if options.latents is not None:
        cache = LatentCache(options.latents, "size")
        if cache.manifest.autoencoder != loaded.fingerprint:
            raise ValueError(
                f"latents={options.latents} were made with the autoencoder {cache.manifest.autoencoder}, but "
                f"source={options.source} holds {loaded.fingerprint}"
            )
        return normalising(state, cache.stats_card)
    if options.scaling_factor is not None:
        return {"scaling_factor": options.scaling_factor}, state
    if loaded.card.get("scaling"):
        return dict(loaded.card["scaling"]), state
    raise ValueError(
        "nothing says how these latents are scaled: pass latents=RUN of a cache made with this autoencoder (its mean "
        "and std are measured), or scaling_factor=NUMBER"
    )
