"""With the paper's head a logit is exactly the mean of one number per patch. Maps of these numbers show where votes come from."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from beton_tools.base.errors import UserError
from fastft.cli import main
from fastft.evaluate.predictor import Predictor, compute_outputs
from fastft.evaluate.trained import load_trained
from fastft.evaluate.votes import draw_votes
from fastft.report.run_report import write_run_page
from tests.written import make_checkpoint

EXACT = 3e-6
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def files(photographs, tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("files")
    for name in ("chelsea", "coffee", "rocket"):
        Image.fromarray(photographs[name]).save(folder / f"{name}.png")
    return sorted(folder.glob("*.png"))


def test_the_mean_of_the_votes_over_patches_is_the_logit(run_of_random_model, files):
    trained = load_trained(run_of_random_model, CPU)
    logits = [row for _, _, row in compute_outputs(trained, files, CPU)]
    spread = 0.0
    for (_, _, votes_KHW), logits_K in zip(
        compute_outputs(trained, files, CPU, method="patch_votes"), logits, strict=True
    ):
        grid = trained.recipe.evaluated_size // trained.model.visual.arch.patch_size
        assert votes_KHW.shape == (len(trained.outputs), grid, grid) and grid > 1
        assert (votes_KHW.mean((1, 2)) - logits_K).abs().max() <= EXACT
        spread = max(spread, float(votes_KHW.std((1, 2)).max()))
    assert spread > 100 * EXACT  # the patches differ, so the mean is not of equal numbers


def test_patches_are_in_the_order_of_the_image(run_of_random_model, photographs):
    """Only the upper left patch's own pixels change, and its votes change most."""
    trained = load_trained(run_of_random_model, CPU)
    side, patch = trained.recipe.evaluated_size, trained.model.visual.arch.patch_size
    images = torch.zeros(3, 3, side, side)
    images[1, :, :patch, :patch], images[2, :, :patch, -patch:] = 2.0, 2.0
    plain, first, last = trained.model.eval().patch_votes(images).detach()
    changes = [(other - plain).abs().sum(0) for other in (first, last)]
    assert [divmod(int(change.argmax()), change.shape[1]) for change in changes] == [
        (0, 0),
        (0, changes[0].shape[1] - 1),
    ]


def test_predict_writes_pictures_and_exact_tables(run_of_random_model, files, tmp_path, capsys):
    out = tmp_path / "votes"
    command = ["predict", str(run_of_random_model), *map(str, files), "--device=cpu", "--json", "--votes", str(out)]
    assert main(command) == 0
    printed = capsys.readouterr()
    lines = [json.loads(line) for line in printed.out.splitlines()]
    plain = list(Predictor(run_of_random_model, "cpu").predict(files))
    for number, (line, path, prediction) in enumerate(zip(lines, files, plain, strict=True)):
        table = np.load(out / f"{number:04}-{path.stem}.npz")
        assert str(table["path"]) == str(path) == line["path"]
        assert abs(table["votes"].mean((1, 2)) - table["logits"]).max() <= EXACT
        best = table["classes"][np.argsort(-table["logits"])]
        assert line["classes"][0] == best[0] == prediction.classes[0]
        assert line["probabilities"] == pytest.approx(prediction.probabilities, abs=1e-5)
        assert f"{path.stem}.png: red patches vote for {best[0]}, blue ones for {best[1]}" in printed.err
        picture = Image.open(out / f"{number:04}-{path.stem}.png")
        assert picture.width == 2 * picture.height >= 2 * 224
    assert main(command) == 2 and "is not empty" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    (out / "2024-mine.npz").touch()
    assert main(["predict", str(run_of_random_model), str(files[0]), "--votes", str(out), "--overwrite"]) == 0
    first = f"0000-{files[0].stem}"
    assert {path.name for path in out.iterdir()} == {f"{first}.npz", f"{first}.png", "2024-mine.npz"}


def test_red_is_for_and_blue_against(run_of_random_model):
    recipe = load_trained(run_of_random_model, CPU).recipe
    grey = Image.new("RGB", (100, 80), (128, 128, 128))
    seen, drawn = draw_votes(grey, np.array([[1.0, 0.0], [-0.5, -1.0]]), recipe)
    side = seen.width
    corners = [drawn.getpixel((x, y)) for y in (5, side - 5) for x in (5, side - 5)]
    assert corners[0][0] > 150 > corners[0][2] and corners[1] == (128, 128, 128)  # type: ignore[index]
    assert corners[3][2] > 150 > corners[3][0] and 128 < corners[2][2] < corners[3][2]  # type: ignore[index]


@pytest.mark.parametrize("pool", ["class", "class+patches", "attention"])
def test_heads_whose_logits_are_no_mean_over_patches_are_refused(tmp_path, photographs, files, pool, refused):
    make_checkpoint(tmp_path, {}, classes=sorted(photographs), model__pool=pool, model__head_init_scale=1.0)
    error = refused(["predict", tmp_path / "run", files[0], "--device=cpu", "--votes", tmp_path / "votes"])
    assert f"(model.pool={pool})" in error and "Leave --votes out" in error


def test_votes_are_those_of_one_view(run_of_random_model):
    with pytest.raises(UserError, match="Leave --flip-average out"):
        Predictor(run_of_random_model, "cpu", flip_average=True, votes=True)


def test_the_report_has_a_map_beside_each_mistake(run_of_random_model):
    page = write_run_page(run_of_random_model, mistakes="always", overwrite=True).read_text()
    pairs = re.findall(r'<span class="pair"><img src="(data:[^"]+)" [^>]+><img src="(data:[^"]+)" alt="votes of', page)
    assert len(pairs) == 12 and all(image != votes for image, votes in pairs)
    assert "the difference of the two logits is the mean over the patches" in page
    (run_of_random_model / "report.html").unlink()
