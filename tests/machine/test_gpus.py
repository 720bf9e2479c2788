"""Peaks by the names that torch gives devices: a PCIe card is no SXM card."""

import pytest
import torch

from fastft.machine.gpus import GPUS, find_gpu, peak_flops

PEAKS = {
    "Tesla V100-SXM2-32GB": (125, 15.7),
    "Tesla V100-PCIE-16GB": (112, 14),
    "Tesla V100S-PCIE-32GB": (130, 16.4),
    "NVIDIA A100-SXM4-40GB": (312, 19.5),
    "NVIDIA A100 80GB PCIe": (312, 19.5),
    "NVIDIA H100 80GB HBM3": (989, 67),
    "NVIDIA H100 PCIe": (756, 51),
    "NVIDIA H100 NVL": (835, 60),
    "NVIDIA H200": (989, 67),
}


@pytest.mark.parametrize("name", PEAKS)
def test_a_card_has_the_peaks_of_its_data_sheet(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    half, full = (peak_flops(torch.device("cuda"), dtype) for dtype in (torch.float16, torch.float32))
    assert half is not None and full is not None
    assert (half / 1e12, full / 1e12) == pytest.approx(PEAKS[name])


def test_only_cards_of_the_kind_that_is_priced_are_it() -> None:
    priced = {name: gpu.name for name in PEAKS if (gpu := find_gpu(name)) in GPUS.values()}
    assert priced == {
        "Tesla V100-SXM2-32GB": "V100", "NVIDIA A100-SXM4-40GB": "A100", "NVIDIA A100 80GB PCIe": "A100",
        "NVIDIA H100 80GB HBM3": "H100",
    }  # fmt: skip
    assert find_gpu("NVIDIA GeForce RTX 3090") is None
