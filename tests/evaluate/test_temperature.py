"""The temperature that a run's held-out images fit is used for probabilities, stored in exports, and changes no ranking."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastft.cli import main
from fastft.evaluate import trained as trained_module
from fastft.evaluate.prediction import Predictor
from fastft.evaluate.trained import load_trained, scale_head
from fastft.export import FORMATS, export_checkpoint
from fastft.export.card import _temperature
from tests.export.test_export import CLIP, OUTS, make_checkpoint

FITTED = {"temperature": 2.5, "ece": 9.0, "ece_scaled": 3.0}
CPU = torch.device("cpu")


def predicted(run: Path, photo: Path, temperature: bool = True) -> dict[str, float]:
    (found,) = Predictor(run, "cpu", temperature=temperature).predict(photo, topk=7)
    return dict(zip(found.classes, found.probabilities, strict=True))


@pytest.fixture
def photo(tmp_path: Path, photographs: dict[str, np.ndarray]) -> Path:
    Image.fromarray(photographs["coffee"][:64, :64]).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_predict_applies_it_says_so_and_can_be_told_not_to(tmp_path, photo, capsys):
    make_checkpoint(tmp_path, dict(CLIP), FITTED)
    scaled, plain = (predicted(tmp_path / "run", photo, on) for on in (True, False))
    assert list(scaled) == list(plain)
    powers = np.array(list(plain.values())) ** (1 / 2.5)
    assert list(scaled.values()) == pytest.approx(powers / powers.sum(), rel=1e-4)
    command = ["predict", str(tmp_path / "run"), str(photo), "--device=cpu"]
    line = "logits are divided by the temperature 2.500, fitted on 80 held-out images"
    for extra, says in (([], True), (["--no-temperature"], False)):
        assert main([*command, *extra]) == 0
        assert (line in capsys.readouterr().err) == says


@pytest.mark.parametrize("worse", [{"ece_scaled": 9.0}, {"temperature": float(np.exp(-4))}])
def test_it_is_not_used_where_other_images_get_worse(tmp_path, photo, worse):
    make_checkpoint(tmp_path, dict(CLIP), FITTED | worse)
    assert predicted(tmp_path / "run", photo) == predicted(tmp_path / "run", photo, temperature=False)
    assert load_trained(tmp_path / "run", CPU).temperature_record == {}


@pytest.mark.parametrize("format", FORMATS)
def test_exports_have_it_in_the_head_and_name_it(tmp_path, format):
    make_checkpoint(tmp_path, dict(CLIP), FITTED)
    out = tmp_path / OUTS[format]
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        want = load_trained(tmp_path / "run", CPU).model(images)
        for on, divisor in ((True, 2.5), (False, 1.0)):
            done = export_checkpoint(tmp_path / "run", format, out, overwrite=True, temperature=on)
            torch.testing.assert_close(FORMATS[format].load(out)(images), want / divisor, rtol=1e-3, atol=1e-4)
            card = done.card.read_text()
            assert ("divided by the temperature 2.5, which changes no ranking" in card) == on
            config = {"timm": out / "config.json", "open_clip": out / "open_clip_config.json"}.get(format)
            if config:
                stored = json.loads(config.read_text()).get("temperature")
                assert stored == ({"value": 2.5, "in_head": True, "images": 80} if on else None)


def test_it_stays_out_of_a_head_whose_rankings_would_change(tmp_path, monkeypatch):
    """Two outputs that rounding makes equal: here every ranking counts as changed."""
    make_checkpoint(tmp_path, dict(CLIP), FITTED)
    before = load_trained(tmp_path / "run", CPU).model.state_dict()
    monkeypatch.setattr(trained_module.torch, "equal", lambda a, b: False)
    found = scale_head(load_trained(tmp_path / "run", CPU), torch.randn(2, 3, 32, 32))
    monkeypatch.undo()
    assert not found.has_scaled_head and found.temperature_record["temperature"]["in_head"] is False
    assert all(torch.equal(value, before[name]) for name, value in found.model.state_dict().items())
    assert "Divide the logits by the temperature 2.5" in _temperature(found)
