"""What `ldm estimate` is told beside the command: the device, and what neither data nor runs tell yet."""

from pathlib import Path
from typing import Annotated, Any, Self

import torch
from annotated_types import Interval
from omegaconf import DictConfig

from ldm.checkpoint import CARD, find
from ldm.commands.options import Group, Text, parsed
from ldm.data.formats import MANIFEST, Manifest
from ldm.models.autoencoder import Autoencoder
from ldm.runtime.arguments import arguments_of, node_with
from ldm.runtime.gpus import CPU, Device, named
from ldm.runtime.ranges import Count, Positive
from ldm.training.contract import SUPPLIED
from ldm.training.cost import this_cpu, this_machine

ShareOfPeak = Annotated[float, Interval(gt=0, le=1)]


class EstimateOptions(Group):
    """conf/estimate.yaml, which says what each key means."""

    autoencoder: Annotated[dict[str, Any], arguments_of(Autoencoder, "variational", "quantizer")]
    net: Annotated[dict[str, Any], node_with(*SUPPLIED)]
    gpu: Text | None
    tflops: Positive | None
    memory_gb: Positive | None
    share: ShareOfPeak
    cpu_share: ShareOfPeak
    images: Count | None
    resolution: Count
    num_classes: Count
    latent_shape: tuple[Count, Count, Count] | None

    @classmethod
    def parse(cls, config: DictConfig) -> Self:
        """The options of a composed config; ValueError, in one line, for a key or a value that is wrong."""
        return parsed(cls, config)[0]

    def device(self) -> Device:
        """What the command would run on.

        Raises:
            ValueError: for a GPU that is not in the table and whose numbers are not given.
        """
        if self.gpu is None and (self.tflops is None) != (self.memory_gb is None):
            lacks, has = ("memory_gb", "tflops") if self.memory_gb is None else ("tflops", "memory_gb")
            raise ValueError(f"{has}= alone describes no GPU: pass {lacks}=, too, or gpu=")
        if self.gpu is None and self.tflops is None:
            return this_machine()
        if self.gpu == CPU:
            device = this_cpu(self.tflops)
        elif self.gpu is not None:
            device = named(self.gpu)
        else:
            device = Device(name="a GPU", half=1.0, single=1.0, memory=1.0)
        peaks = {} if self.tflops is None else {"half": self.tflops, "single": self.tflops}
        held = {} if self.memory_gb is None else {"memory": self.memory_gb}
        return Device(**vars(device) | peaks | held)

    def share_of(self, device: Device) -> float:
        """Of its peak."""
        return self.cpu_share if device.name == CPU else self.share

    def shape_of_autoencoder(self, path: str | Path | None, said: list[str]) -> dict[str, Any]:
        """The arguments of the autoencoder of a run or checkpoint; where it is not there, those of ae=."""
        if path is not None and Path(path).exists():
            return find(Path(path), "autoencoder")[1][CARD]["autoencoder"]
        said.append(f"the autoencoder is that of ae= (not {path}, which is not there)" if path else "")
        return self.autoencoder

    def codes_of_latents(self, folder: str | None) -> int:
        """Of a cache of codes, how many there are to choose from; ValueError where it is none, or not there."""
        file = Path(str(folder)) / MANIFEST
        codes = Manifest.read(file).codes if file.is_file() else None
        if codes is None:
            raise ValueError(
                f"objective=ardm: latents={folder} is no cache of codes: ldm cache-latents codes=true first"
            )
        return codes

    def shape_of_latents(self, folder: str, said: list[str]) -> tuple[tuple[int, int, int], int, int | None]:
        """C, h, w, the number of classes, and that of images, of a cache; where it is not there, as the options say."""
        if (Path(folder) / MANIFEST).is_file():
            manifest = Manifest.read(Path(folder) / MANIFEST)
            channels, height, width = manifest.shape
            channels = channels // 2 if manifest.codes is None else channels
            return (channels, height, width), len(manifest.class_names), manifest.count.train + manifest.count.val
        shape = self.latent_shape
        if shape is None:
            with torch.device("meta"):
                factor = Autoencoder(**self.autoencoder).downsample_factor
            if self.resolution % factor:
                raise ValueError(f"resolution={self.resolution} is not a multiple of the autoencoder's factor {factor}")
            shape = (self.autoencoder["latent_channels"], self.resolution // factor, self.resolution // factor)
        by = f"ae= and resolution={self.resolution}" if self.latent_shape is None else "latent_shape="
        said.append(
            f"{folder} is not there: latents of {' x '.join(map(str, shape))} by {by}, num_classes={self.num_classes}"
        )
        return shape, self.num_classes, self.images
