"""Networks in files that are damaged, or do something else than they should: one line that names the file."""

import warnings

import pytest
import torch

from ldm.metrics.classifier import FileClassifier
from ldm.metrics.features import FromFile, Inception, Pixels

EXAMPLE = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)


class Grey(torch.nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.float().mean((2, 3))


class NotFinite(torch.nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.float().mean((2, 3)) / 0.0


class Raises(torch.nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        assert image.sum() > 0, "no image\nat all"
        return image.float().mean((2, 3))


class OneRow(torch.nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.float().mean((2, 3))[:1]


class Text(torch.nn.Module):
    def forward(self, image: torch.Tensor) -> str:
        return "no tensor"


def scripted(module, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TorchScript's end
        torch.jit.save(torch.jit.script(module), path)
    return path


def refused(path, key="features"):
    with pytest.raises(ValueError) as info:
        FromFile(path, EXAMPLE, key) if key == "features" else FileClassifier(path, EXAMPLE, 3)
    line = str(info.value)
    assert line.startswith(f"{key}={path} ")
    assert "\n" not in line
    return line


@pytest.mark.parametrize("key", ["features", "classifier"])
@pytest.mark.parametrize(
    ("module", "said"),
    [
        (NotFinite(), "returns values that are not finite"),
        (Raises(), "can't be used on [2, 3, 8, 8] uint8 images"),
        (OneRow(), "returns the shape [1, 3], not a tensor of two dimensions, a row an image"),
        (Text(), "returns a str, not a tensor"),
    ],
)
def test_networks_that_do_something_else(key, module, said, tmp_path):
    assert said in refused(scripted(module, tmp_path / "x.pt"), key)


@pytest.mark.parametrize("suffix", ["pt", "pt2"])
def test_files_that_are_cut_or_are_none(suffix, tmp_path):
    path = tmp_path / f"x.{suffix}"
    if suffix == "pt":
        scripted(Grey(), path)
    else:
        torch.export.save(torch.export.export(Grey(), (EXAMPLE,)), path)
    whole = path.read_bytes()
    for content in (b"", b"text", b"PK\x03\x04", *(whole[: len(whole) * i // 8] for i in range(1, 8))):
        path.write_bytes(content)
        assert "can't be used" in refused(path)
    torch.save({"weight": torch.zeros(3)}, path)  # weights alone, as people take them for a network
    assert "can't be used" in refused(path)


def test_what_is_no_file(tmp_path):
    assert "does not exist" in refused(tmp_path / "none.pt")
    (tmp_path / "folder.pt").mkdir()
    assert "is no regular file" in refused(tmp_path / "folder.pt")
    (tmp_path / "zero.pt").symlink_to("/dev/zero")
    assert "is no regular file" in refused(tmp_path / "zero.pt")


@pytest.mark.parametrize("key", ["features", "classifier"])
def test_the_log_says_that_such_a_file_is_run(key, tmp_path, caplog):
    path = scripted(Grey(), tmp_path / "grey.pt")
    with caplog.at_level("INFO"):
        FromFile(path, EXAMPLE, key) if key == "features" else FileClassifier(path, EXAMPLE, 3)
        Pixels()(EXAMPLE)
    assert [record.getMessage() for record in caplog.records] == [
        f"{key}={path} runs the code in grey.pt: load only files that you trust"
    ]


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04"])
def test_inceptions_weights_that_are_damaged(content, tmp_path):
    (tmp_path / "inception.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"inception\.pth is damaged, not Inception's weights \(.*\): remove it"):
        Inception(tmp_path / "inception.pth")
