"""What a training takes of a GPU's memory, and what is said where it does not fit."""

import json
from dataclasses import replace

import pytest

from fastft.cli import main
from fastft.cost.gpu_memory import memory_need
from fastft.machine.gpus import GPUS
from fastft.recipe import load_recipe

GB = 1e9


@pytest.mark.parametrize(("card", "images"), [(16, 128), (40, 256), (80, 256)])
def test_the_micro_batch_is_what_fits_into_the_card(card, images):
    """B/16, 256 images per GPU: 62 MB an image and some for its loader, 1.7 GB of state."""
    need = memory_need(load_recipe("final_b16"), "autocast", card * GB, 8)
    assert need.fits and need.micro_batch == images
    assert need.state == pytest.approx(1.7 * GB, rel=0.02) and 60e6 < need.per_image < 70e6


def test_a_model_that_does_not_fit_is_not_priced_as_if_it_did(capsys, monkeypatch):
    """B/16, whose state takes 1.7 GB, on an H100 of which there is 1 GB."""
    monkeypatch.setitem(GPUS, "H100", replace(GPUS["H100"], memory=1 * GB))
    assert main(["explain", "final_b16", "--json"]) == 0
    memory = {gpu: p["memory"] for gpu, p in json.loads(capsys.readouterr().out)["cost"]["assumptions"].items()}
    assert memory["H100"] == {"gb": pytest.approx(1.8, abs=0.1), "card_gb": 1.0, "state_gb": pytest.approx(1.7, abs=0.1),
                              "micro_batch": 1, "fits": False}  # fmt: skip
    assert memory["V100"]["fits"] and memory["V100"]["micro_batch"] == 128 and memory["A100"]["micro_batch"] == 256
    assert main(["explain", "final_b16"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert (
        "H100 does not fit" in text
        and "H100: does not fit: it takes 1.8 GB with micro-batches of 1, and 0.9 of the GPU's 1 GB can be used" in text
    )
    assert "fastft does not shard a model over GPUs, as torchtitan and Composer do with FSDP" in text
    assert main(["cost", "final_b16", "--gpu", "h100"]) == 0
    assert "final_b16 does not fit: it takes 1.8 GB" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_evas_e14_fits_into_141_gb_but_not_into_80():
    """4.4 billion parameters, of which weights, gradients, moments and EMA take 87 GB."""
    recipe = load_recipe("final_b16", ["--model.arch=timm/eva02_enormous_patch14_clip_224", "--model.weights=random"])
    needs = {gb: memory_need(recipe, "autocast", gb * GB, 8) for gb in (80, 141)}
    assert needs[80].state == pytest.approx(87 * GB, rel=0.02)
    assert {gb: need.fits for gb, need in needs.items()} == {80: False, 141: True}


@pytest.mark.slow
def test_dinov3_7b_has_gb_in_place_of_hours(capsys):
    """6.7 billion parameters, of which weights, gradients, moments and EMA take 134 GB. No weights are fetched."""
    arch = ["--model.arch=timm/vit_7b_patch16_dinov3", "--model.weights=timm", "--model.image_size=256"]
    assert main(["explain", "final_b16", *arch]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "H100: does not fit: it takes 13" in text
    assert "fastft does not shard a model over GPUs, as torchtitan and Composer do with FSDP" in text
    assert main(["cost", "final_b16", *arch, "--gpu", "h100"]) == 0
    assert "final_b16 does not fit: it takes 13" in " ".join(capsys.readouterr().out.split())
