"""Every model of docs/models.md is explained, priced and trained for a step."""

import json
import re
from pathlib import Path

import pytest

from fastft.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
LISTED = list(
    dict.fromkeys(re.findall(r"^\| `timm/([^`]+)`", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
)
OTHERS = ["beit_base_patch16_224"]
FAST = ["swin_tiny_patch4_window7_224", "beit_base_patch16_224"]
# with half-precision weights: their fp32 buffers meet half-precision activations
NOT_TRACED = re.compile("swin|beit")
MODELS = [pytest.param(n, marks=[] if n in FAST else pytest.mark.slow) for n in [*LISTED, *OTHERS]]


def options(name: str) -> list[str]:
    return [f"--model.arch=timm/{name}", "--model.weights=timm"]


@pytest.mark.parametrize("name", MODELS)
def test_it_is_explained_and_priced_and_what_cannot_be_counted_says_so(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", "final_b16", *options(name), "--json"]) == 0
    hours = json.loads(capsys.readouterr().out)["cost"]["gpu_hours"]
    assert hours["A100"] > 0 and (hours["V100"] is None) == bool(NOT_TRACED.search(name))
    assert main(["explain", "final_b16", *options(name)]) == 0
    said = capsys.readouterr()
    assert said.err == "" and "A100" in said.out
    assert main(["cost", "final_b16", *options(name), "--gpu", "v100"]) == 0
    said = capsys.readouterr()
    assert said.err == "" and (f"timm/{name} on V100: not counted" in said.out) == (hours["V100"] is None)


def test_an_mfu_of_ones_own_prices_what_cannot_be_counted(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["cost", "final_b16", "frugal_b16", *options(FAST[0]), "--gpu", "v100"]
    assert main([*command, "--mfu", "20%", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["recipes"]
    assert [[e["basis"] for e in r["estimates"]] for r in found] == [["given"], ["given"]]
    assert main(["cost", "--frontier", "frugal_b16", *options(FAST[0]), "--gpu", "v100"]) == 2
    assert capsys.readouterr().err.endswith("cannot be traced; give --mfu\n")
