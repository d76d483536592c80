"""A page in the browser to play with a model: samples, reconstructions, interpolations, two models side by side."""

import logging
import os
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from ldm.checkpoint import LoadedAutoencoder, kind_of, load_autoencoder
from ldm.commands.hydra_errors import explain, is_users
from ldm.commands.options import Options, Text, Weights
from ldm.commands.playground_studio import CommandStudio, ModelKeys, reconstruct_line
from ldm.generate.autoencoding import AutoencoderModel
from ldm.generate.model import LatentDiffusionModel
from ldm.play.serving import Ended, address_of, exit_at_sigterm, keep_gradio_here, listening, serve
from ldm.runtime.ranges import Count
from ldm.runtime.ranks import pick_device
from ldm.runtime.wrong import first_line

if TYPE_CHECKING:
    from ldm.play.pages import Tab

log = logging.getLogger(__name__)

UNSAID = 256  # pixels: of an autoencoder that does not say what it was trained at, as imported ones


class PlaygroundOptions(Options):
    """conf/playground.yaml, which says what each key means."""

    model: Text
    autoencoder: Text | None
    weights: Weights
    other: Text | None
    host: Text
    port: Annotated[int, Field(ge=1, le=65535)] | None
    batch_size: Count
    device: str


def main(options: PlaygroundOptions, run: Path) -> None:
    if find_spec("gradio") is None:
        raise ValueError("ldm playground needs gradio, which is not installed: pip install 'ldm[play]'")
    with exit_at_sigterm(), listening(options.host, options.port) as bound:  # first: a model takes longer to load
        keep_gradio_here(run / "uploads")
        ended = Ended()
        tabs = tabs_of(options, ended)
        from ldm.play.pages import app_of

        app = app_of(f"ldm: {options.model}", tabs, said_of)
        print(f"{options.model} at {address_of(bound)} (Ctrl-C ends it)", flush=True)
        serve(app, bound, ended)


def tabs_of(options: PlaygroundOptions, ended: Ended) -> "dict[str, Tab]":
    """What the page has for this model, by title."""
    if kind_of(Path(options.model)) == "autoencoder":
        return tabs_of_autoencoder(options)
    keys = {key: options.plain()[key] for key in ModelKeys.__annotations__}
    studio = CommandStudio(ModelKeys(**keys), options.seed, ended)
    own = studio.own
    from ldm.play import pages  # with gradio, which takes seconds: not before the model is there

    return {
        "Sample": partial(pages.sample_tab, studio),
        "Reconstruct": reconstructing(options.run, own.autoencoder, own.model, own.model.resolution),
        **({"Interpolate": partial(pages.interpolate_tab, studio)} if studio.choices.between else {}),
        "Compare": partial(pages.compare_tab, studio, options.model, options.other or ""),
    }


def tabs_of_autoencoder(options: PlaygroundOptions) -> "dict[str, Tab]":
    """Likewise, of stage 1 alone."""
    for key, unused in (("autoencoder", None), ("weights", "ema"), ("other", None)):
        if getattr(options, key) != unused:
            raise ValueError(f"model={options.model} holds an autoencoder: {key}= is for diffusion models")
    loaded = load_autoencoder(options.model)
    model = AutoencoderModel(loaded.model.to(pick_device(options.device)))
    factor = loaded.model.downsample_factor
    resolution = (loaded.card["preprocessing"] or {}).get("resolution", -(-UNSAID // factor) * factor)
    return {"Reconstruct": reconstructing(options.run, loaded, model, resolution)}


def reconstructing(
    run: str, loaded: LoadedAutoencoder, model: LatentDiffusionModel | AutoencoderModel, resolution: int
) -> "Tab":
    """The tab that does what `ldm reconstruct` does, at images of so many pixels a side."""
    from ldm.play import pages

    trained = loaded.card["preprocessing"] or {}
    as_trained = trained.get("resolution") == resolution
    given: dict[str, Any] = {"run": f"{run}-pairs", "autoencoder": os.path.relpath(loaded.path)}
    if not as_trained:
        given["resolution"] = resolution
    sides = resolution, trained.get("resize") if as_trained else None
    return partial(pages.reconstruct_tab, model, sides, partial(reconstruct_line, given))


def said_of(error: Exception) -> str:
    """What the page says of an error; of one that is no user's, the terminal has the trace."""
    if is_users(error):
        return explain(error, "sample", [])
    log.error("a fault of ldm", exc_info=error)
    return f"a fault of ldm, of which the terminal says more: {type(error).__name__}: {first_line(error)}"
