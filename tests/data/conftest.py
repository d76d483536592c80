import pytest
from support.image_files import write_images


@pytest.fixture
def photos(tmp_path):
    """Two classes, 12 + 8 images of 40 x 30."""
    write_images(tmp_path / "photos" / "cat", 12)
    write_images(tmp_path / "photos" / "dog", 8, seed=1)
    return tmp_path / "photos"
