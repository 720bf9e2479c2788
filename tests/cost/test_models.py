"""Every model of docs/models.md is explained and priced; one whose step cannot be counted says so."""

import json
import re
from pathlib import Path

import pytest

from fastft.cli import main
from fastft.cost import roofline

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
LISTED = dict.fromkeys(re.findall(r"^\| `timm/([a-z0-9_.]+)`", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
MODELS = [*LISTED, "beit_base_patch16_224"]


def options(name: str) -> list[str]:
    return [f"--model.arch=timm/{name}", "--model.weights=timm"]


@pytest.mark.slow  # a fast one is among the commands of the pages, in tests/test_docs.py
@pytest.mark.parametrize("name", MODELS)
def test_it_is_explained_and_priced(name, capsys):
    """With autocast and with half-precision weights."""
    assert main(["explain", "final_b16", *options(name), "--json"]) == 0
    hours = json.loads(capsys.readouterr().out)["cost"]["gpu_hours"]
    assert hours["A100"] > 0 and hours["V100"] > 0
    assert main(["cost", "final_b16", *options(name), "--gpu", "v100"]) == 0
    assert capsys.readouterr().err == ""


def test_what_cannot_be_counted_says_so_and_is_priced_by_an_mfu_of_ones_own(monkeypatch, capsys):
    monkeypatch.setattr(roofline, "image_traffic", lambda recipe, path: None)
    assert main(["explain", "final_b16", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cost"]["gpu_hours"]["V100"] is None
    command = ["cost", "final_b16", "frugal_b16", "--gpu", "v100"]
    assert main(command) == 0
    assert "on V100: not counted" in capsys.readouterr().out
    assert main([*command, "--mfu", "20%", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["recipes"]
    assert [[e["basis"] for e in r["estimates"]] for r in found] == [["given"], ["given"]]
