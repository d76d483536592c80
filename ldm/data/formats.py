"""The JSON files of image shards and of the latent cache."""

from typing import Annotated, Any, ClassVar, Literal, Self

from annotated_types import Ge
from pydantic import AfterValidator, Field, model_validator

from ldm.runtime.ranges import Count, Natural, Positive
from ldm.runtime.schema import ClassNames, FileName, Fingerprint, Finite, JsonFile, Part, Sha256, Whitening, one_of

MANIFEST = "manifest.json"


class PackedShard(Part):
    """A tar of images: its file, images, and, since format 2, size and checksum."""

    name: FileName
    count: Count
    bytes: Count | None = None
    sha256: Sha256 | None = None


class PackedSplits(Part):
    """The shards of each split, in order."""

    train: Annotated[list[PackedShard], Field(min_length=1)]
    val: Annotated[list[PackedShard], Field(min_length=1)]


class ShardIndex(JsonFile):
    """index.json of a folder that `ldm pack` made: format 1 named and counted its shards alone."""

    fix: ClassVar[str] = "run `ldm pack` again, into a new folder"
    known: ClassVar[tuple[int, ...]] = (1, 2)

    format: Annotated[int, one_of(1, 2)] = 1
    class_names: ClassNames
    shards: PackedSplits

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        shards = [*self.shards.train, *self.shards.val]
        _each_once(shards)
        if self.format > 1 and any(shard.bytes is None or shard.sha256 is None for shard in shards):
            raise ValueError("a shard lacks its bytes or its sha256")
        return self


Shape = Annotated[list[Count], Field(min_length=3, max_length=3)]  # of an image's moments: 2C, h, w; of codes: 1, h, w


class Pairs(Part):
    """Of a cache of a teacher's samples: how they were drawn, each from the noise of its index.

    train, val: how many; those held out have the indices after the others
    """

    teacher: Fingerprint
    teacher_path: str
    sampler: dict[str, Any]
    grid: dict[str, Any]
    guidance: Finite
    seed: Natural
    train: Count
    val: Natural


class TextEncoderCard(Part):
    """Of embeddings of captions: the encoder, tokens a caption, and channels of each."""

    source: str
    fingerprint: Fingerprint
    tokens: Count
    width: Count


class DenseFeaturesCard(Part):
    """Of dense features of the images: what made them, and their shape."""

    identity: str
    channels: Count
    height: Count
    width: Count


class CacheIdentity(Part):
    """What all shards of a cache have in common.

    text_encoder:   of the embeddings of captions that are kept; null: none are
    low_resolution: side of the small copies of the images that are kept, in pixels; null: none are
    features:       of the dense features of the images that are kept; null: none are
    codes:          of a cache of codes, which are kept in place of moments: how many there are to choose from
    """

    format: Annotated[int, one_of(1)]
    autoencoder: Fingerprint  # of the weights
    preprocessing: dict[str, Any]
    views: Annotated[int, one_of(1, 2)]
    dtype: Literal["float16", "uint16", "int32"]
    class_names: ClassNames
    pairs: Pairs | None = None
    text_encoder: TextEncoderCard | None = None
    low_resolution: Count | None = None
    features: DenseFeaturesCard | None = None
    codes: Annotated[int, Ge(2)] | None = None

    @model_validator(mode="after")
    def _is_of_its_type(self) -> Self:
        if self.dtype != dtype_of(self.codes):
            raise ValueError(f"dtype is {self.dtype}, and codes={self.codes} are {dtype_of(self.codes)}")
        return self

    def difference(self, wanted: "CacheIdentity") -> str:
        """Say in words what differs: "views is 1, not 2"."""
        pairs = (
            (name, _known(getattr(self, name)), _known(getattr(wanted, name))) for name in CacheIdentity.model_fields
        )
        return "; ".join(f"{name} is {mine}, not {other}" for name, mine, other in pairs if mine != other)


def dtype_of(codes: int | None) -> Literal["float16", "uint16", "int32"]:
    """The type in which a cache keeps moments (None), or so many different codes."""
    if codes is None:
        return "float16"
    return "uint16" if codes <= 2**16 else "int32"


def _known(value: Any) -> Any:
    """What tells caches apart: of a text encoder, not where it lies."""
    return value.model_dump(exclude={"source"}) if isinstance(value, TextEncoderCard) else value


class Sums(Part):
    """Float64 sums of posterior samples z and z^2 of a shard, per channel, over images, views and places.

    products: sums of mean mean^T, [C, C], whose diagonal lacks the posteriors' variances; null in shards of before
    """

    count: Count
    first: Annotated[list[Finite], Field(min_length=1)]
    second: Annotated[list[Finite], Field(min_length=1)]
    products: list[list[Finite]] | None = None


class ShardCard(JsonFile):
    """train-000000.json: what a shard of latents is, written after its tar.

    images:  a digest of the names of its images
    files:   a digest of their files' sizes and times, by which a rerun sees that none was replaced
    content: a digest of their bytes, which decides where sizes or times differ; "" where a card is from before both
    captioned: how many of them have a caption
    """

    fix: ClassVar[str] = "remove it, and run the same `ldm cache-latents` again, which encodes its shard anew"

    identity: CacheIdentity
    images: str
    files: str = ""
    content: str = ""
    shape: Shape
    count: Count
    captioned: Natural = 0
    bytes: Count
    sha256: Sha256
    sums: Sums

    @model_validator(mode="before")
    @classmethod
    def _from_before(cls, data: Any) -> Any:
        """Until version 0.2 the digest of names lay in the identity."""
        if isinstance(data, dict) and isinstance(identity := data.get("identity"), dict) and "images" in identity:
            rest = {key: value for key, value in identity.items() if key != "images"}
            return data | {"identity": rest, "images": identity["images"]}
        return data

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        channels = _channels(self.shape, self.identity.codes)
        if len(self.sums.first) != channels or len(self.sums.second) != channels:
            raise ValueError(f"sums are not of {channels} channels, as latents of shape[0]={self.shape[0]} are")
        products = self.sums.products
        if products is not None and {len(products), *map(len, products)} != {channels}:
            raise ValueError(f"sums.products are not of {channels} x {channels} channels")
        return self


class CachedShard(Part):
    """A tar of latents: its file, images, size and checksum."""

    name: FileName
    count: Count
    bytes: Count
    sha256: Sha256


class CachedSplits(Part):
    """The shards of each split, in order."""

    train: Annotated[list[CachedShard], Field(min_length=1)]
    val: list[CachedShard]


class Counts(Part):
    """Images of each split."""

    train: Count
    val: Natural


class Manifest(CacheIdentity, JsonFile):
    """manifest.json of a latent cache; captioned: how many of the training images have a caption."""

    fix: ClassVar[str] = "run the same `ldm cache-latents` again, which writes it anew"
    known: ClassVar[tuple[int, ...]] = (1,)

    shape: Shape
    count: Counts
    captioned: Natural = 0
    mean: list[Finite]  # of the raw latents' channels
    std: list[Positive]
    whitening: Whitening | None = None  # of their correlation
    shards: CachedSplits

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        channels = _channels(self.shape, self.codes)
        for name in ("mean", "std", "whitening"):
            value = getattr(self, name)
            if value is not None and len(value) != channels:
                raise ValueError(
                    f"{name} has {len(value)} channels, and latents of shape[0]={self.shape[0]} {channels}"
                )
        for split in ("train", "val"):
            count = sum(shard.count for shard in getattr(self.shards, split))
            if count != getattr(self.count, split):
                raise ValueError(f"count.{split} is {getattr(self.count, split)}, and its shards hold {count} images")
        _each_once([*self.shards.train, *self.shards.val])
        return self


def _state(state: list[Any]) -> list[Any]:
    if not (len(state) == 4 and isinstance(state[0], str) and all(type(number) is int for number in state[1:])):
        raise ValueError("a checksum and three whole numbers")
    return state


class Verified(JsonFile):
    """verified.json: each shard's state when its checksum was last compared and found right."""

    fix: ClassVar[str] = "remove it"
    known: ClassVar[tuple[int, ...]] = (1,)

    format: Annotated[int, one_of(1)]
    shards: dict[str, Annotated[list[Any], AfterValidator(_state)]]


def _channels(shape: list[int], codes: int | None) -> int:
    """Of the latents, whose moments have this shape; of codes, one."""
    if codes is not None:
        if shape[0] != 1:
            raise ValueError(f"shape[0]={shape[0]} is not 1: codes are one number a place")
        return 1
    if shape[0] % 2:
        raise ValueError(f"shape[0]={shape[0]} is odd: moments are a mean and a std for each channel")
    return shape[0] // 2


def _each_once(shards: list[Any]) -> None:
    names = [shard.name for shard in shards]
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise ValueError(f"shards name {twice} twice")
