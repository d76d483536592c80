"""JSON files that are not what their format says: each is refused by file and key."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.json_files import RIGHT
from support.refusals import assert_refused

from ldm.commands.sweep_points import PointFile
from ldm.data.formats import Manifest, ShardCard, ShardIndex, Verified
from ldm.evaluation.result_files import LikelihoodFile, MetricsFile, SampleStamp
from ldm.runtime.lock import Holder
from ldm.training.resume import Rollbacks

NEVER = object()
# values that belong nowhere in these files, but for the places that a key's own list leaves out
WRONG: dict[str, Any] = {
    "null": None,
    "text": "x y/z",
    "negative": -5,
    "fraction": 8.5,
    "true": True,
    "list": [[]],
    "group": {"x": {"y": 1}},
    "NaN": float("nan"),
    "infinity": float("inf"),
}
FINITE = WRONG.keys() - {"NaN", "infinity"}
OPTIONAL = {  # keys that a file may lack, and values that do belong
    ShardIndex: {"format": {"missing"}},
    ShardCard: {"files": {"missing", "text"}, "content": {"missing", "text"}, "images": {"text"}},
    PointFile: {key: {"missing"} for key in PointFile.model_fields},
    MetricsFile: {"frechet_distance": {"missing", *FINITE}},
    LikelihoodFile: {"latent_bits_per_dim": {"missing", *FINITE}},
}
BELONGS = {
    (PointFile, "config", "group"),
    (PointFile, "finished", "true"),
    (PointFile, "value", "null"),
    (PointFile, "value", "negative"),
    (PointFile, "value", "fraction"),
    (PointFile, "error", "null"),
    (PointFile, "error", "text"),
    (PointFile, "log", "null"),
    (PointFile, "log", "text"),
    (PointFile, "command", "text"),
    (Manifest, "preprocessing", "group"),
    (MetricsFile, "samples", "group"),
    *((SampleStamp, key, "text") for key in ("model_path", "autoencoder_path", "classes", "path", "grid", "precision")),
    *((SampleStamp, key, "group") for key in ("preprocessing", "path", "sampler", "grid")),
    *((SampleStamp, key, "fraction") for key in ("guidance", "guidance_rescale", "evaluations")),
    (SampleStamp, "preprocessing", "null"),
    (SampleStamp, "weak", "null"),
    (SampleStamp, "classes", "negative"),
    *((Holder, key, "text") for key in ("command", "host", "where", "since", "job", "restarts", "token")),
}


def cases():
    for schema, right in RIGHT.items():
        for key in right:
            if "missing" not in OPTIONAL.get(schema, {}).get(key, set()):
                yield pytest.param(schema, key, NEVER, id=f"{schema.__name__}-{key}-missing")
            for name, value in WRONG.items():
                fine = OPTIONAL.get(schema, {}).get(key, set())
                if name not in fine and (schema, key, name) not in BELONGS:
                    yield pytest.param(schema, key, value, id=f"{schema.__name__}-{key}-{name}")


def written(folder: Path, data: Any) -> Path:
    path = folder / "file.json"
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize("schema", RIGHT, ids=lambda s: s.__name__)
def test_what_is_right_is_read_as_it_was_written(schema, tmp_path):
    schema.read(written(tmp_path, RIGHT[schema])).write(tmp_path / "again.json")
    again = json.loads((tmp_path / "again.json").read_text())
    assert again == RIGHT[schema] | {"checksum": again["checksum"]}
    assert schema.read(tmp_path / "again.json") == schema.read(written(tmp_path, RIGHT[schema]))


@pytest.mark.parametrize("schema", RIGHT, ids=lambda s: s.__name__)
def test_each_seventh_byte_flipped_is_refused_or_changes_nothing(schema, tmp_path):
    right, path = schema.read(written(tmp_path, RIGHT[schema])), tmp_path / "again.json"
    right.write(path)
    whole, refused = path.read_bytes(), 0
    for i in range(0, len(whole), 7):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
        try:
            read = schema.read(path)
        except ValueError as error:
            assert "again.json" in str(error)
            refused += 1
        else:
            known = {
                key: value
                for key, value in read.model_dump().items()
                if not key.startswith("c") or key in right.model_dump()
            }
            assert known == right.model_dump() or read == right, i
    assert refused > 0.8 * len(whole) / 7


@pytest.mark.parametrize(("schema", "key", "value"), [*cases()])
def test_a_wrong_or_missing_key_is_named(schema, key, value, tmp_path):
    data = copy.deepcopy(RIGHT[schema])
    if value is NEVER:
        del data[key]
    else:
        data[key] = value
    path = written(tmp_path, data)
    said = key if value == value and value != float("inf") else "is no number of JSON"
    assert_refused(lambda: schema.read(path), said, tmp_path, "file.json")


def change(*place: Any, value: Any) -> Callable[[Any], None]:
    def apply(data: Any) -> None:
        for part in place[:-1]:
            data = data[part]
        data[place[-1]] = value

    return apply


def doubled(data):
    data["shards"]["train"] *= 2
    if "count" in data:
        data["count"]["train"] *= 2


def val_is_train(data):
    data["shards"]["val"] = copy.deepcopy(data["shards"]["train"])
    if "count" in data:
        data["count"]["val"] = 8


SHARD = ("shards", "train", 0)
DEEPER = [
    *((s, change(*SHARD, "count", value=v), "shards.train[0].count is") for s in (ShardIndex, Manifest)
      for v in (0, -5, 1e9, 8.5, True, None, "8", [8])),
    *((s, change(*SHARD, "name", value=v), "shards.train[0].name is") for s in (ShardIndex, Manifest)
      for v in ("../x.tar", "/etc/passwd", "pipe:touch pwned; cat x.tar", "a::b.tar", "", ".", "..", ".x.tar", "-rf",
                "a/b.tar", "http://host/x.tar", "x\0.tar", "{0..9}.tar", 300 * "x", "a\nb.tar", "a|b.tar")),
    *((s, doubled, "shards name train-000000.tar twice") for s in (ShardIndex, Manifest)),
    *((s, val_is_train, "shards name train-000000.tar twice") for s in (ShardIndex, Manifest)),
    (ShardIndex, change("shards", "val", value=[]), "shards.val is [], not at least 1 values"),
    (ShardIndex, change("shards", "test", value=[]), "shards.test is no key of this format"),
    (ShardIndex, change("format", value=3), "has the format 3; this version of ldm reads 1 or 2"),
    (ShardIndex, change(*SHARD, "sha256", value="x"), "not the 64 hexadecimal digits of a SHA-256"),
    (ShardIndex, change(*SHARD, "sha256", value=None), "a shard lacks its bytes or its sha256"),
    *((s, change("class_names", value=v), "class_names is") for s in (ShardIndex, Manifest)
      for v in ([], ["cat", "cat"])),
    (ShardIndex, change("class_names", value=[1, 2]), "class_names[0] is 1, not text"),
    (Manifest, change("format", value=9), "has the format 9; this version of ldm reads 1"),
    (Manifest, change("mean", value=[0.0]), "mean has 1 channels, and latents of shape[0]=4 2"),
    (Manifest, change("std", 0, value=0.0), "std[0] is 0.0, not more than 0"),
    (Manifest, change("std", 1, value=-1.0), "std[1] is -1.0, not more than 0"),
    (Manifest, change("whitening", value=[[1.0]]), "whitening has 1 channels, and latents of shape[0]=4 2"),
    *((Manifest, change("whitening", value=v), "whitening is [") for v in ([[1.0, 2.0], [2.0, 1.0]], [[1.0], [0.0]],
      [[1.0, 0.1], [0.0, 1.0]], [[1.0, 1 - 1e-9], [1 - 1e-9, 1.0]], [[0.0, 0.0], [0.0, 0.0]], [])),
    (Manifest, change("std", value=[]), "std has 0 channels, and latents of shape[0]=4 2"),
    (Manifest, change("shape", value=[3, 8, 8]), "shape[0]=3 is odd"),
    (Manifest, change("shape", value=[4, 8]), "shape is [4, 8], not at least 3 values"),
    (Manifest, change("shape", 1, value=0), "shape[1] is 0, not at least 1"),
    (Manifest, change("count", "train", value=9), "count.train is 9, and its shards hold 8 images"),
    (Manifest, change("views", value=3), "views is 3, not 1 or 2"),
    (Manifest, change("dtype", value="float32"), "dtype is float32, not float16"),
    (Manifest, change("autoencoder", value="f00d"), "autoencoder is f00d, not 16 hexadecimal digits"),
    (ShardCard, change("identity", "views", value=7), "identity.views is 7, not 1 or 2"),
    (ShardCard, change("sums", "first", value=[0.0]), "sums are not of 2 channels"),
    (ShardCard, change("sums", "count", value=0), "sums.count is 0, not at least 1"),
    (Verified, change("shards", value=[]), "shards is [], not a group of keys"),
    (Verified, change("shards", "x", value=[1]), "shards.x is [1], not a checksum and three whole numbers"),
    (Rollbacks, change("to", value="../../x"), "to is ../../x, not a number in digits"),
    (SampleStamp, change("guidance", value=-1), "guidance is -1, not at least 0"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "damage", "said"), DEEPER)
def test_what_lies_deeper_or_must_agree_is_named(schema, damage, said, tmp_path):
    data = copy.deepcopy(RIGHT[schema])
    damage(data)
    path = written(tmp_path, data)
    assert_refused(lambda: schema.read(path), said, tmp_path, "file.json")


@pytest.mark.parametrize("schema", RIGHT, ids=lambda s: s.__name__)
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "is damaged, not JSON"),
        (b"{", "is damaged, not JSON"),
        (b"\xff\xfe\x00", "is damaged, not JSON"),
        (100_000 * b"[", "is damaged, not JSON"),
        (b"[]", "it is [], not a group of keys"),
        (b"null", "not a group of keys"),
        (b'"x"', "not a group of keys"),
        (b"7", "not a group of keys"),
    ],
    ids=["empty", "cut", "binary", "deep", "list", "null", "text", "number"],
)
def test_what_is_no_json_or_no_group_of_keys(schema, text, said, tmp_path):
    path = tmp_path / "file.json"
    path.write_bytes(text)
    assert_refused(lambda: schema.read(path), said, tmp_path, "file.json")


def test_a_pipe_a_folder_and_nothing_are_refused_at_once(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.json").mkdir()
    for name, said in (("pipe.json", "no regular file"), ("folder.json", "no regular file"), ("x", "does not exist")):
        assert_refused(lambda name=name: Manifest.read(tmp_path / name), said, tmp_path)


def test_what_is_not_finite_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="it holds the number nan"):
        MetricsFile(samples={}, versions={}, frechet_distance={"value": float("nan")})
    assert list(tmp_path.iterdir()) == []


PLACES = [(schema, key) for schema, right in RIGHT.items() for key in right]
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=20))
ANY_JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(place=st.sampled_from(PLACES), value=ANY_JSON)
def test_any_value_is_read_as_it_is_or_refused_by_its_key(place, value, tmp_path_factory):
    schema, key = place
    path = tmp_path_factory.mktemp("any") / "file.json"
    path.write_text(json.dumps(RIGHT[schema] | {key: value}))
    try:
        read = schema.read(path)
    except ValueError as error:
        assert "\n" not in str(error)
        assert str(path) in str(error)
        assert key in str(error) or "no number of JSON" in str(error)
        return
    read.write(path)
    assert schema.read(path) == read
