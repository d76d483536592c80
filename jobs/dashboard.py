"""A wandb workspace for both stages, from code: python jobs/dashboard.py ENTITY PROJECT (needs the network and a key).

    python jobs/dashboard.py --print      the same as JSON, offline

Its x axis is `images`, which compares runs of different batch sizes; every run logs `batches`, too.
"""

import sys
from typing import Any

import wandb_workspaces.reports.v2 as panels
import wandb_workspaces.workspaces as workspaces

PICTURES = ["reconstructions", "logits", "samples"]
SECTIONS = {
    "diffusion": ["train/loss", "val/loss", "train/grad_norm", "train/lr"],
    "autoencoder": ["val/psnr", "val/ssim", "val/lpips", "val/rfd", "train/l1", "train/lpips", "train/kl"],
    "discriminator": ["train/disc_loss", "train/disc_accuracy", "train/logits_gap", "train/disc_weight"],
    "speed": ["speed/images_per_s", "speed/tflops", "speed/mfu", "speed/gpu_memory_gb"],
}
TOGETHER = {  # a panel each
    "loss by time": [f"val_by_time/{i / 10:.1f}" for i in range(10)],
    "latent standard deviations": [f"latent_std/{i}" for i in range(16)],
    "seconds a batch": [f"speed/{part}_s" for part in ("data", "forward", "backward", "optimizer")],
}


def workspace(entity: str, project: str) -> workspaces.Workspace:
    """Sections of panels; those without data stay empty, and hide themselves."""
    shown: dict[str, list[Any]] = {
        name: [panels.LinePlot(x="images", y=[key], title=key) for key in keys] for name, keys in SECTIONS.items()
    }
    shown["pictures"] = [panels.MediaBrowser(media_keys=[key], title=key) for key in PICTURES]
    shown["together"] = [panels.LinePlot(x="images", y=[*keys], title=title) for title, keys in TOGETHER.items()]
    sections = [workspaces.Section(name=name, panels=plots, is_open=True) for name, plots in shown.items()]
    return workspaces.Workspace(entity=entity, project=project, name="ldm", sections=sections)


if __name__ == "__main__":
    if sys.argv[1:] == ["--print"]:
        print(workspace("ENTITY", "PROJECT")._to_model().model_dump_json(by_alias=True, indent=1))
    elif len(sys.argv) == 3:
        print(workspace(*sys.argv[1:]).save().url)
    else:
        sys.exit(__doc__)
