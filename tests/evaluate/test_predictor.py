"""Evaluation and prediction from a checkpoint alone."""

import csv
import json
import math
import os
import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from beton_tools.base.errors import UserError
from beton_tools.base.image_formats import TRANSPARENT
from beton_tools.write.convert import convert_folder
from beton_tools.write.writer import WriteOptions
from fastft import load_recipe
from fastft.augment.policies import AugmentPolicy
from fastft.cli import main
from fastft.evaluate import predictor
from fastft.evaluate.evaluation import evaluate_checkpoint, evaluate_file
from fastft.evaluate.predictor import (
    Prediction,
    Predictor,
    ReadImage,
    compute_outputs,
    eval_tensor,
    predict_files,
    read_image,
    write_predictions,
)
from fastft.evaluate.trained import load_trained
from fastft.run.checkpoint import find_checkpoint, read_checkpoint
from tests.train.runs import run
from tests.written import write_crops


@pytest.fixture(scope="module")
def trained(tiny: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose architecture file was deleted afterwards."""
    folder = tmp_path_factory.mktemp("trained")
    arch = folder / "arch.json"
    arch.write_bytes(Path(tiny["model.arch"]).read_bytes())
    short = {"model.arch": str(arch), "schedule.epochs": "1", "schedule.warmup_epochs": "0"}
    run(tiny | short, folder / "run")
    arch.unlink()
    return folder / "run"


def test_evaluation_does_not_need_the_architecture_file(trained, tiny):
    evaluation = read_checkpoint(find_checkpoint(trained)).state.evaluation
    scores = evaluate_checkpoint(trained, None, "cpu", weights="best")
    assert scores.samples == 20
    assert scores.top1 == evaluation.ema.top1
    assert scores.loss == pytest.approx(evaluation.ema.loss, rel=1e-5)


def test_files_of_other_kinds_in_folders_are_counted_in_one_line(trained, photographs, tmp_path, capsys):
    for name in ("a/x.JXL", "a/b/x.jxl", "a/.hidden.heic", "c/notes", "c/x.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for folder in ("a", "c"):
        Image.fromarray(photographs["coffee"]).save(tmp_path / folder / "x.png")
    command = ["predict", str(trained), str(tmp_path / "a"), str(tmp_path / "c"), "--device=cpu"]
    for extra in ("--no-temperature", f"--features={tmp_path / 'x.npz'}"):
        assert main([*command, extra]) == 0
        said = capsys.readouterr().err
        assert "left out, as they are not images: 2 .jxl, 1 without suffix, 1 .csv\n" in said
        assert said.count("\n") == 2  # beside the weights


def test_images_that_lose_values_are_counted_in_one_line(trained, photographs, tmp_path, capsys):
    grey = np.asarray(Image.fromarray(photographs["coffee"]).convert("L"))
    Image.fromarray(grey).save(tmp_path / "a.png")
    for name, dtype in (("b.png", np.uint16), ("c.tiff", np.int32), ("d.tiff", np.float32)):
        Image.fromarray(grey.astype(dtype)).save(tmp_path / name)
    images = [str(tmp_path / name) for name in ("a.png", "b.png", "c.tiff", "d.tiff")]
    line = "3 images have 16 or 32 bits per value, reduced to 8 (in each file, the smallest value becomes black"
    for extra in ([], [f"--csv={tmp_path / 'x.csv'}"], [f"--features={tmp_path / 'x.npz'}"]):
        assert main(["predict", str(trained), *images, "--device=cpu", *extra]) == 0
        assert capsys.readouterr().err.count(line) == 1
        assert main(["predict", str(trained), images[0], "--device=cpu", "--overwrite", *extra]) == 0
        assert "bits per value" not in capsys.readouterr().err
    in_memory = Predictor(trained, "cpu").predict([Image.open(image) for image in images])
    assert [len(p.notes) for p in in_memory] == [0, 1, 1, 1]


def test_every_file_gets_its_classes_or_an_error(trained, photographs, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    Image.fromarray(photographs["coffee"]).save(folder / "a.jpg")
    (folder / "b.jpg").write_bytes(b"no image at all")
    Image.fromarray(photographs["coffee"]).convert("L").save(folder / "c.png")
    found = list(predict_files(trained, [folder], topk=5, device="cpu"))
    assert [p.path.name for p in found] == ["a.jpg", "b.jpg", "c.png"]
    assert found[1].error and not found[1].classes
    for p in (found[0], found[2]):
        assert sorted(p.classes) == ["astronaut", "coffee"]
        assert sum(p.probabilities) == pytest.approx(1, abs=1e-5)

    table = tmp_path / "out.csv"
    write_predictions(iter([replace(found[0], path=Path("a, b.jpg")), found[1]]), table)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["file"], r["rank"]) for r in rows] == [("a, b.jpg", "1"), ("a, b.jpg", "2"), (str(found[1].path), "")]


def test_a_least_probability_above_1_is_refused(trained):
    with pytest.raises(UserError, match="min_probability is 70"):
        Predictor(trained, "cpu", min_probability=70)


def test_an_image_below_the_least_probability_is_none_of_the_classes(trained, photographs, tmp_path, capsys):
    Image.fromarray(photographs["coffee"]).save(tmp_path / "a.png")
    (found,) = Predictor(trained, "cpu").predict(tmp_path / "a.png")
    for limit, classes in ((found.probabilities[0], found.classes), (found.probabilities[0] + 1e-4, [])):
        (limited,) = Predictor(trained, "cpu", min_probability=limit).predict(tmp_path / "a.png")
        assert limited.classes == classes and limited.error is None
    assert limited.rejected == pytest.approx(dict(zip(found.classes, found.probabilities, strict=True)))
    command = ["predict", str(trained), str(tmp_path / "a.png"), "--device=cpu", "--min-probability=99.99%"]
    assert main(command) == 0
    said = f"a.png: none of these (most probable: {found.classes[0]} {found.probabilities[0]:.1%})\n"
    assert capsys.readouterr().out.endswith(said)
    assert main([*command, "--json"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert (line["classes"], line["probabilities"], line["error"]) == ([], [], None)
    assert line["rejected"] == pytest.approx(limited.rejected)
    assert main([*command, "--csv", str(tmp_path / "a.csv")]) == 0
    with (tmp_path / "a.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert capsys.readouterr().out.endswith(said)  # the table is written beside it
    assert row["predicted"] == "" and float(row["probability"]) == pytest.approx(found.probabilities[0], abs=1e-6)


def test_foreign_images_are_those_below_the_limit_of_the_validation_images(trained, photographs, tmp_path, capsys):
    """The limit is what 95 % of the run's validation images reach, with the weights that are used."""
    limit = load_trained(trained, torch.device("cpu")).foreign_below
    sums_N = np.array([row.double().logsumexp(0).item() for row in validation_logits(trained)])
    assert limit == pytest.approx(np.quantile(sums_N, 0.05), abs=1e-4)
    noise = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), np.uint8)
    images = [*map(Image.fromarray, photographs.values()), *map(Image.fromarray, noise)]
    plain = list(Predictor(trained, "cpu").predict(images))
    limited = list(Predictor(trained, "cpu", reject_foreign=True).predict(images))
    loaded = load_trained(trained, torch.device("cpu"))
    outputs = compute_outputs(loaded, images, torch.device("cpu"))
    foreign = [row.double().logsumexp(0).item() < limit for _, _, row in outputs]
    assert 0 < sum(foreign) < len(images)
    for before, after, is_foreign in zip(plain, limited, foreign, strict=True):
        assert after.classes == ([] if is_foreign else before.classes)
        assert list(after.rejected) == (before.classes if is_foreign else [])
    Image.fromarray(noise[0]).save(tmp_path / "noise.png")
    assert main(["predict", str(trained), str(tmp_path / "noise.png"), "--device=cpu", "--reject-foreign"]) == 0
    assert ("none of these" in capsys.readouterr().out) == foreign[len(photographs)]


def validation_logits(run: Path) -> list[torch.Tensor]:
    _, evaluated = evaluate_file(run, load_trained(run, torch.device("cpu")).open_validation(), "cpu", "auto")
    return list(torch.from_numpy(evaluated.predictions.logits_NK))


def test_without_a_limit_no_image_is_called_foreign(trained, run_of_random_model):
    with pytest.raises(UserError, match=r"does not say what its validation images reach.*Leave --reject-foreign out"):
        Predictor(run_of_random_model, "cpu", reject_foreign=True)
    for changed in ("logit_adjustment", "flip_average"):
        with pytest.raises(UserError, match="Leave --" + changed.replace("_", "-")):
            Predictor(trained, "cpu", reject_foreign=True, **{changed: True})


def test_a_mirrored_image_has_the_same_flip_average(trained, photographs):
    both = [Image.fromarray(photographs["coffee"][:, ::step]) for step in (1, -1)]
    for flip in (False, True):
        one, other = (p.probabilities for p in Predictor(trained, "cpu", flip_average=flip).predict(both))
        assert (one == pytest.approx(other, abs=1e-6)) == flip


def test_impossible_options_of_a_predictor_are_named(trained):
    with pytest.raises(UserError, match=r"device is tpu\. Give auto, cuda or cpu"):
        Predictor(trained, device="tpu")
    with pytest.raises(UserError, match="topk is 0"):
        next(Predictor(trained, device="cpu").predict(["a.jpg"], topk=0))


def test_predict_and_eval_see_the_same_image(trained, photographs, tmp_path, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6
    coffee, rocket = (Image.fromarray(photographs[name]) for name in ("coffee", "rocket"))
    for name in ("astronaut", "coffee"):
        (tmp_path / "images" / name).mkdir(parents=True)
    coffee.crop((0, 0, 64, 80)).save(tmp_path / "images" / "astronaut" / "small.png", exif=exif)
    coffee.save(tmp_path / "images" / "coffee" / "large.png")
    coffee.crop((0, 0, 320, 240)).save(tmp_path / "images" / "coffee" / "turned.jpg", exif=exif, quality=95)
    rocket.putalpha(Image.linear_gradient("L").resize(rocket.size))
    rocket.save(tmp_path / "images" / "coffee" / "transparent.png")
    convert_folder(tmp_path / "images", tmp_path / "a.beton", WriteOptions(workers=0))
    arguments = ["--device=cpu", f"--csv={tmp_path / 'e.csv'}", f"--data={tmp_path / 'a.beton'}"]
    assert main(["eval", str(trained), *arguments]) == 0
    evaluated = {row["file"]: row for row in csv.DictReader((tmp_path / "e.csv").open())}
    capsys.readouterr()
    for found in predict_files(trained, [tmp_path / "images"], 1, "cpu", print):
        row = evaluated[str(found.path.relative_to(tmp_path / "images"))]
        assert found.classes[0] == row["predicted"]
        assert found.probabilities[0] == pytest.approx(float(row["probability"]), abs=2e-3)
    assert "1 image has transparent pixels, which get the background colour\n" in capsys.readouterr().out


def test_transparent_pixels_have_the_recipes_background():
    clear = Image.new("RGBA", (300, 300), (255, 0, 0, 0))
    for colour in ("white", "black", "#0000ff"):
        recipe = load_recipe("photos", [f"--data.background={colour}"])
        found, shown = (read_image(image, recipe) for image in (clear, Image.new("RGB", (300, 300), colour)))
        assert isinstance(found, ReadImage) and isinstance(shown, ReadImage)
        assert torch.equal(found.tensor, shown.tensor) and (found.notes, shown.notes) == ((TRANSPARENT,), ())


def test_a_file_with_other_classes_is_not_scored(trained, photographs, tmp_path, refused):
    write_crops(tmp_path / "images", photographs, {"coffee": 1, "rocket": 1})
    data = tmp_path / "other.beton"
    convert_folder(tmp_path / "images", data, WriteOptions(workers=0))
    error = refused(["eval", trained, "--data", data, "--device", "cpu"])
    assert "class 0 is coffee, but in the model it is astronaut" in error and str(data) in error


def test_predict_fails_if_no_file_can_be_read(trained, tmp_path, capsys):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"no image at all")
    images = [str(tmp_path / "a.jpg"), str(tmp_path / "b.jpg")]
    assert main(["predict", str(trained), *images, "--device", "cpu", "--no-temperature"]) == 2
    shown = capsys.readouterr()
    assert shown.out.count("not read") == 2
    assert "no image could be read" in shown.err and shown.err.count("\n") == 2  # beside the weights


@pytest.mark.timeout(120)
def test_fifos_and_devices_are_refused_without_waiting(trained, photographs, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    Image.fromarray(photographs["coffee"]).save(folder / "a.png")
    os.mkfifo(folder / "b.jpg")
    (folder / "c.jpg").symlink_to("/dev/zero")
    (folder / "d.jpg").mkdir()
    found = list(predict_files(trained, [folder], topk=1, device="cpu"))
    errors = {p.path.name: p.error for p in found}
    assert errors == {
        "a.png": None, "b.jpg": "a FIFO, not a regular file", "c.jpg": "a device, not a regular file"
    }  # fmt: skip
    missing = folder / "none.jpg"
    for path in (folder / "b.jpg", Path("/dev/zero"), missing):
        with pytest.raises(UserError, match=f"no image could be read. The first is {path}: "):
            list(predict_files(trained, [path], topk=1, device="cpu"))
    others = list(predict_files(trained, [missing, folder / "a.png"], topk=1, device="cpu"))
    assert [p.error for p in others] == ["No such file or directory", None], "one missing file stops no others"


def test_a_table_that_cannot_be_written_is_named_and_no_part_of_it_remains(tmp_path):
    def disk_full() -> Iterator[Prediction]:
        yield Prediction(Path("a.jpg"), ["coffee"], [1.0])
        raise OSError(28, "No space left on device")  # the error of a write has no file name

    table = tmp_path / "out.csv"
    with pytest.raises(UserError, match=f"{table}: cannot be written .No space left"):
        write_predictions(disk_full(), table)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="cannot be written"):
        write_predictions(iter([]), tmp_path / "nowhere" / "out.csv")


SIZES = [(64, 64), (65, 64), (64, 91), (333, 200), (200, 333), (37, 411), (500, 375), (9, 5)]
COLOURS = {"mean": (0.48, 0.46, 0.41), "std": (0.27, 0.26, 0.28)}


def torchvision_tensor(image: Image.Image, size: int, crop_pct: float) -> torch.Tensor:
    bicubic = transforms.InterpolationMode.BICUBIC
    transform = transforms.Compose(
        [
            transforms.Resize(math.floor(size / crop_pct), bicubic),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(**COLOURS),
        ]
    )
    return transform(image.convert("RGB"))


@pytest.mark.parametrize("crop_pct", [1.0, 0.875, 0.95])
@pytest.mark.parametrize("size", [64, 65])
def test_the_input_is_torchvisions(size, crop_pct, photographs):
    for image in photographs.values():
        for height, width in SIZES:
            cut = Image.fromarray(np.ascontiguousarray(image[:height, :width]))
            ours = eval_tensor(cut, size, AugmentPolicy("none", crop_pct=crop_pct, **COLOURS))
            assert torch.equal(ours, torchvision_tensor(cut, size, crop_pct)), (height, width)


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1"])
def test_a_name_that_a_spreadsheet_would_run_is_written_as_text(tmp_path, name):
    predictions = [Prediction(Path(name), [name, "cat"], [0.75, 0.25])]
    write_predictions(predictions, tmp_path / "out.csv")
    first, second = csv.DictReader((tmp_path / "out.csv").open(newline=""))
    assert (first["file"], first["predicted"], first["probability"]) == (f"'{name}", f"'{name}", "0.750000")
    assert second["predicted"] == "cat"


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_images_of_other_modes_are_converted(mode, photographs):
    image = Image.fromarray(photographs["coffee"]).convert(mode)
    ours = eval_tensor(image, 96, AugmentPolicy("none", crop_pct=0.9, **COLOURS))
    assert torch.equal(ours, torchvision_tensor(image, 96, 0.9))


@pytest.mark.parametrize("shape", [(1, 65_000), (65_000, 1), (2, 40_001)])
def test_an_extreme_shape_needs_little_memory(shape):
    """Resized as a whole, an image of 1 x 65,000 pixels would take 10 GB."""
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    image = Image.fromarray(noise)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = eval_tensor(image, 224, AugmentPolicy("none", crop_pct=0.875, **COLOURS))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB
    assert found.shape == (3, 224, 224) and found.std() > 0.1


@pytest.mark.parametrize("shape", [(40, 300), (300, 40), (33, 1001)])
def test_the_crop_of_an_extreme_shape_is_that_of_the_whole(shape, monkeypatch, photographs):
    """Up to rounding: at most one level of 255."""
    cut = np.resize(photographs["coffee"], (*shape, 3))
    policy = AugmentPolicy("none", crop_pct=0.875, mean=(0, 0, 0), std=(1, 1, 1))
    whole = eval_tensor(Image.fromarray(cut), 64, policy)
    monkeypatch.setattr(predictor, "MOST_PIXELS", 0)
    cropped = eval_tensor(Image.fromarray(cut), 64, policy)
    torch.testing.assert_close(cropped, whole, atol=1.01 / 255, rtol=0)
