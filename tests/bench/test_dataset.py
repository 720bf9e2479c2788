"""The images of a benchmark: everybody reads the same bytes, and a cold cache is cold."""

import pytest

from beton_tools.base.errors import UserError
from fastft.bench.dataset import Workspace, find_images


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTFT_IMAGENET_SAMPLE", str(folder / "nowhere"))
        return Workspace(folder, find_images(None, folder, 8))


def test_without_a_folder_packaged_photographs_are_used_and_named_in_the_notes(workspace):
    assert len(workspace.images.paths) == 8
    assert "packaged with scikit-image" in workspace.images.what


def test_a_folder_without_images_is_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="one folder per class"):
        find_images(tmp_path, tmp_path, 4)
