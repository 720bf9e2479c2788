"""Stock FFCV 1.0.2 reads what we write."""

import numpy as np
from ffcv.fields.basics import IntDecoder
from ffcv.fields.rgb_image import CenterCropRGBImageDecoder, RandomResizedCropRGBImageDecoder, SimpleRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from PIL import Image

from beton_tools.read.format import Beton
from beton_tools.sources import open_source
from beton_tools.write.writer import WriteOptions, write_beton
from tests.beton_tools.conftest import photograph


def test_stock_loader_delivers_every_sample_once_with_its_label(photo_folder, tmp_path):
    out = tmp_path / "photos.beton"
    source = open_source(photo_folder)
    write_beton(out, source, WriteOptions(workers=0, page_size=1 << 16))

    loader = Loader(
        str(out),
        batch_size=5,
        num_workers=1,
        order=OrderOption.SEQUENTIAL,
        drop_last=False,
        pipelines={"image": [CenterCropRGBImageDecoder((32, 32), 1.0)], "label": [IntDecoder()]},
    )
    batches = [(images.copy(), labels.copy()) for images, labels in loader]

    assert sum(len(images) for images, _ in batches) == len(source.labels) == 24
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in batches])[:, 0], source.labels)
    assert min(images.std() for images, _ in batches) > 10  # photographs, not blanks


def test_stock_random_resized_crop_decoder_runs_on_our_file(photo_folder, tmp_path):
    out = tmp_path / "photos.beton"
    write_beton(out, open_source(photo_folder), WriteOptions(workers=0))
    pipelines = {"image": [RandomResizedCropRGBImageDecoder((24, 24))], "label": [IntDecoder()]}
    loader = Loader(str(out), batch_size=8, num_workers=1, pipelines=pipelines)
    assert [images.shape for images, _ in loader] == [(8, 24, 24, 3)] * 3


def test_stock_decoder_gives_photographs_upright(tmp_path):
    """Turned by each orientation of Exif, all are the same picture, but for the rounding of the DCT."""
    photo = photograph("chelsea.png").convert("RGB").crop((0, 0, 160, 128))
    (tmp_path / "in" / "a").mkdir(parents=True)
    # the inverse of each turn, of Pillow's Transpose
    for orientation, way in enumerate((None, 0, 3, 1, 5, 2, 6, 4), 1):
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = photo if way is None else photo.transpose(Image.Transpose(way))
        stored.save(tmp_path / "in" / "a" / f"{orientation}.jpg", exif=exif, quality=95, subsampling=0)
    write_beton(tmp_path / "a.beton", open_source(tmp_path / "in"), WriteOptions(workers=0))
    pipelines = {"image": [SimpleRGBImageDecoder()], "label": [IntDecoder()]}
    images, _ = next(iter(Loader(str(tmp_path / "a.beton"), 8, 1, drop_last=False, pipelines=pipelines)))
    assert images.shape == (8, 128, 160, 3)
    assert max(np.abs(image.astype(int) - np.asarray(photo)).mean() for image in images) < 2.5


def test_stock_simple_decoder_gives_the_pixels_of_a_raw_file(photo_folder, tmp_path):
    out = tmp_path / "raw.beton"
    options = WriteOptions(workers=0, write_mode="raw", max_resolution=40, page_size=1 << 16)
    write_beton(out, open_source(photo_folder), options)
    beton = Beton.open(out)
    assert set(beton.modes) == {1}
    ids = np.flatnonzero((beton.heights == beton.heights[0]) & (beton.widths == beton.widths[0]))
    loader = Loader(str(out), 24, 1, drop_last=False, pipelines={"image": [CenterCropRGBImageDecoder((16, 16), 1.0)]})
    images = next(iter(loader))[0]
    assert len(images) == 24 and min(image.std() for image in images) > 10
    np.testing.assert_array_equal(beton.sizes[ids], 3 * int(beton.heights[0]) * int(beton.widths[0]))
