"""A trained model as a folder that diffusers loads whole: both stages, a scheduler, and the pipeline's own code."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict

from ldm.card import can_be_guided, learned_guidance, usual_guidance
from ldm.checkpoint import LoadedAutoencoder, LoadedDiffusion
from ldm.exchange import autoencoder_weights, dit_weights, unet_names, unet_shapes
from ldm.exchange.diffusers_folders import AutoencoderConfig, UNetConfig, write_diffusers
from ldm.exchange.dit_weights import DiTConfig
from ldm.exchange.schedulers import Counterpart, Named, counterpart
from ldm.exchange.weight_files import State
from ldm.models.dit import DiT
from ldm.models.unet import UNet
from ldm.runtime.files import atomic_write
from ldm.runtime.schema import JsonFile

INDEX, CODE = "model_index.json", "pipeline.py"
FURTHER = "further_embeddings"  # what a student's network is told beside time and label


class DiffusersJson(JsonFile):
    """A file of diffusers' that this project only writes."""

    model_config = ConfigDict(extra="allow")
    checksummed: ClassVar[bool] = False
    fix: ClassVar[str] = "export the model again"


@dataclass(frozen=True, kw_only=True)
class PipelineExport:
    """A model in diffusers' words, ready to be written.

    loaded:      stage 2
    autoencoder: stage 1, whose latents it generates
    scheduler:   that walks its path
    network:     config.json of the U-Net or the DiT
    beyond:      what the pipeline must set in the U-Net, see `ldm.exchange.unet_shapes.diffusers_config`
    further:     further/config.json; {} where the network is told nothing beside time and label
    """

    loaded: LoadedDiffusion
    autoencoder: LoadedAutoencoder
    scheduler: Counterpart
    network: UNetConfig | DiTConfig
    beyond: dict[str, int]
    further: dict[str, Any]

    @classmethod
    def of(cls, loaded: LoadedDiffusion, autoencoder: LoadedAutoencoder, scheduler: Named | None) -> "PipelineExport":
        """Translate a model, by the scheduler that is wanted or that suits its own sampler.

        Raises:
            ValueError: naming what of the model has no counterpart in diffusers.
        """
        net = loaded.card["net"]
        if loaded.objective.of_codes:
            raise ValueError(f"{loaded.run} makes codes, one after the other, for which diffusers has no pipeline")
        if not isinstance(loaded.net, UNet | DiT):
            raise ValueError(f"{loaded.run} holds a {type(loaded.net).__name__}, which diffusers has not")
        if net.get("concat_channels"):
            raise ValueError(f"{loaded.run} holds a network with concat_channels, for which the pipeline has no place")
        if net.get("context_dim") and net.get("label_as") != "context":
            raise ValueError(f"{loaded.run} holds a network of text, for whose encoder the pipeline has no place")
        student = (loaded.card.get("student") or {}).get("method", {})
        network: UNetConfig | DiTConfig
        beyond: dict[str, int] = {}
        if isinstance(loaded.net, DiT):
            network = DiTConfig(**dit_weights.diffusers_config(net))
        else:
            config, beyond = unet_shapes.diffusers_config(net, loaded.card["latent_shape"][-1])
            network = UNetConfig(**config)
        export = cls(
            loaded=loaded,
            autoencoder=autoencoder,
            scheduler=counterpart(
                loaded.objective, loaded.card["objective"]["path"], loaded.sampling, scheduler, student.get("steps")
            ),
            network=network,
            beyond=beyond,
            further=unet_shapes.further_config(net),
        )
        export.vae()
        return export

    @property
    def part(self) -> str:
        """The folder of the network."""
        return "transformer" if isinstance(self.network, DiTConfig) else "unet"

    def vae(self) -> AutoencoderConfig:
        """vae/config.json: with it, z = latent x std + mean."""
        shape = self.autoencoder.card["autoencoder"]
        pixels = self.loaded.card["latent_shape"][-1] * self.autoencoder.model.downsample_factor
        return autoencoder_weights.diffusers_config(self.autoencoder.model, shape, self._normalising[0], pixels)

    @cached_property
    def _normalising(self) -> tuple[dict[str, Any], State]:
        state = self.autoencoder.model.state_dict()
        return autoencoder_weights.normalising(state, self.loaded.card["stats"])

    def index(self) -> dict[str, Any]:
        """model_index.json: the parts' classes, and the arguments of the pipeline."""
        card = self.loaded.card
        lowest, highest = learned_guidance(card)
        return {
            "_class_name": ["pipeline", "LatentDiffusionPipeline"],
            "_diffusers_version": "0.32.0",
            self.part: ["diffusers", self.network.extra("_class_name")],
            "vae": ["diffusers", "AutoencoderKL"],
            "scheduler": [self.scheduler.library, self.scheduler.config["_class_name"]],
            **({"further": [FURTHER, self.further["_class_name"]]} if self.further else {}),
            "id2label": {str(i): name for i, name in enumerate(card["class_names"])},
            "guidable": can_be_guided(card),
            "clock": self.scheduler.clock,
            "path_shift": self.scheduler.path_shift,
            "time_offset": float(card["net"].get("time_offset", 0.0)),
            **self.beyond,
            "guidance_scale": usual_guidance(card),
            "num_inference_steps": self.scheduler.steps,
            **({} if highest is None else {"guidance_range": [lowest, highest]}),
        }

    def codes(self) -> list[Path]:
        """Files of code in the folder."""
        carried = [Path(CODE)]
        carried += [Path("scheduler", self.scheduler.library + ".py")] if self.scheduler.library != "diffusers" else []
        return carried + ([Path("further", FURTHER + ".py")] if self.further else [])

    def write(self, folder: Path) -> None:
        """Write vae/, unet/ or transformer/, scheduler/, further/, the code that they need and, last, model_index.json;
        what else lies there stays."""
        net, (_, autoencoder) = self.loaded.net.state_dict(), self._normalising
        levels = len(self.autoencoder.card["autoencoder"]["channel_mult"])
        names: Any = dit_weights if self.part == "transformer" else unet_names
        write_diffusers(folder / self.part, self.network, names.to_diffusers(net, self.loaded.card["net"]))
        write_diffusers(folder / "vae", self.vae(), autoencoder_weights.to_diffusers(autoencoder, levels))
        DiffusersJson(**self.scheduler.config).write(folder / "scheduler" / "scheduler_config.json")
        if self.further:
            further = unet_names.further_to_diffusers(net)
            write_diffusers(folder / "further", DiffusersJson(**self.further), further)
        for code in self.codes():
            with atomic_write(folder / code) as file:
                file.write(Path(__file__).with_name("carried").joinpath(code.name).read_bytes())
        DiffusersJson(**self.index()).write(folder / INDEX)
