"""Sets of images: some of all over a split, and arrays as other programs write them."""

import zipfile
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import pytest
import torch

from ldm.data.samples import Part, Sample
from ldm.data.sources import Folder
from ldm.evaluation.image_sets import ArraySet, spread


@dataclass(frozen=True, kw_only=True)
class Numbers(Folder):
    """Images that are numbers, in parts of these sizes."""

    sizes: tuple[int, ...]

    def parts(self, split, size):
        def part(end, count):
            return Part("", "", str, lambda: (Sample("", b"", "", i) for i in range(end - count, end)))

        return [part(end, count) for end, count in zip(accumulate(self.sizes), self.sizes, strict=True)]

    def decode(self, sample):
        return None if sample.label == 7 else sample.label

    def center_view(self, image):
        return torch.full((3, 1, 1), image)


@pytest.mark.parametrize("num", [1, 8, 65, 129, 500, 9000])
@pytest.mark.parametrize("sizes", [(128,) * 400, (10,) * 900 + (3,), (51200,)])
def test_images_are_taken_from_all_over_a_split(num, sizes):
    source = Numbers(root="", resolution=1, sizes=sizes)
    batches = list(spread(source, "train", num, 50))
    images, labels = (torch.cat(column) for column in zip(*batches, strict=True))
    count = min(num, sum(sizes) - 1)  # one can't be decoded
    assert len(set(labels.tolist())) == len(labels) == count
    assert torch.equal(images[:, 0, 0, 0], labels)
    assert [len(image) for image, _ in batches[:-1]] == [50] * (len(batches) - 1)
    if num >= 64 and len(sizes) > 1:
        quarters = torch.bincount((4 * labels) // sum(sizes), minlength=4)
        assert quarters.min() >= 0.8 * count / 4


def written(path, how, images, labels):
    arrays = {"arr_0": images, "arr_1": labels}
    if how == "compressed":
        np.savez_compressed(path, **arrays)
    elif how == "newer header":
        with zipfile.ZipFile(path, "w") as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(member, array, version=(2, 0))
    else:
        np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("how", ["stored", "compressed", "newer header", "fortran"])
def test_arrays_of_any_layout_are_read(tmp_path, how):
    images = np.random.default_rng(0).integers(0, 256, (11, 4, 4, 3), dtype=np.uint8)
    labels = np.arange(11, dtype=">i4" if how == "stored" else np.int64)
    path = written(tmp_path / "a.npz", how, np.asfortranarray(images) if how == "fortran" else images, labels)
    found = ArraySet.load(path)
    parts = [list(found.batches(4, 0, rank, 2)) for rank in range(2)]
    for rank, batches in enumerate(parts):
        assert torch.equal(
            torch.cat([image for image, _ in batches]).permute(0, 2, 3, 1), torch.tensor(images)[rank::2]
        )
        assert torch.cat([label for _, label in batches]).tolist() == list(range(rank, 11, 2))


@pytest.mark.parametrize("how", ["stored", "compressed"])
def test_no_damaged_byte_is_a_trace_or_passes(tmp_path, how):
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    whole = written(tmp_path / "a.npz", how, images, np.arange(5)).read_bytes()
    for i in range(0, len(whole), 7):
        damaged = tmp_path / "b.npz"
        damaged.write_bytes(whole[:i] + bytes([whole[i] ^ 0x55]) + whole[i + 1 :])
        try:
            found = ArraySet.load(damaged)
        except ValueError as error:
            assert "b.npz" in str(error)
        else:  # of what zip itself does not check: times, names' flags
            assert np.array_equal(found.images, images)


@pytest.mark.parametrize("labels", [np.array(["a"] * 5), np.array([None] * 5), np.zeros(5), np.zeros(4, int)])
def test_labels_are_whole_numbers(tmp_path, labels):
    path = written(tmp_path / "a.npz", "stored", np.zeros((5, 4, 4, 3), np.uint8), labels)
    with pytest.raises(ValueError, match=r"a\.npz"):
        ArraySet.load(path)
