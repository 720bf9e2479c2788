"""Peaks by the names that torch gives devices."""

import pytest
import torch

from fastft.machine import gpus
from fastft.machine.gpus import GPUS, MAIN_GPUS, find_gpu, peak_flops

CARDS = {  # device name: name in GPUS, tensor TFLOP/s, fp32 TFLOP/s, GB/s
    "Tesla V100-SXM2-32GB": ("V100", 125, 15.7, 900),
    "Tesla V100-PCIE-16GB": ("V100-PCIe", 112, 14, 900),
    "Tesla V100S-PCIE-32GB": ("V100S", 130, 16.4, 1134),
    "Tesla T4": ("T4", 65, 8.1, 300),
    "Tesla P100-PCIE-16GB": ("P100", 9.3, 9.3, 732),
    "NVIDIA A100-SXM4-40GB": ("A100-40", 312, 19.5, 1555),
    "NVIDIA A100-SXM4-80GB": ("A100", 312, 19.5, 2039),
    "NVIDIA A100 80GB PCIe": ("A100", 312, 19.5, 2039),
    "NVIDIA A10": ("A10", 125, 31.2, 600),
    "NVIDIA H100 80GB HBM3": ("H100", 989, 67, 3350),
    "NVIDIA H100 PCIe": ("H100-PCIe", 756, 51, 2000),
    "NVIDIA H100 NVL": ("H100-NVL", 835, 60, 3900),
    "NVIDIA H200": ("H200", 989, 67, 4800),
    "NVIDIA H200 NVL": ("H200-NVL", 835, 60, 4800),
    "NVIDIA B200": ("B200", 2250, 75, 8000),
    "NVIDIA L4": ("L4", 121, 30.3, 300),
    "NVIDIA L40S": ("L40S", 362, 91.6, 864),
    "NVIDIA GeForce RTX 3090": ("RTX3090", 71, 35.6, 936),
    "NVIDIA GeForce RTX 4090": ("RTX4090", 165.2, 82.6, 1008),
    "NVIDIA GeForce RTX 5090": ("RTX5090", 209.5, 104.8, 1792),
}


@pytest.mark.parametrize("device_name", CARDS)
def test_a_device_name_gives_the_peaks_of_its_data_sheet(device_name, monkeypatch):
    name, tensor, fp32, bandwidth = CARDS[device_name]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: device_name)
    half, full = (peak_flops(torch.device("cuda"), dtype) for dtype in (torch.float16, torch.float32))
    assert half is not None and full is not None
    assert (half / 1e12, full / 1e12) == pytest.approx((tensor, fp32))
    gpu = find_gpu(device_name)
    assert gpu is not None and gpu == GPUS[name] and gpu.bandwidth / 1e9 == pytest.approx(bandwidth)


@pytest.mark.parametrize(
    "device_name", ["NVIDIA A10G", "NVIDIA L40", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 3090 Ti"]
)
def test_a_similar_name_is_not_mistaken_for_a_known_card(device_name):
    assert find_gpu(device_name) is None


def test_every_card_is_in_the_test():
    assert {name for name, *_ in CARDS.values()} == set(GPUS)
    assert set(MAIN_GPUS) <= set(GPUS)


def test_products_that_would_take_seconds_are_not_measured(monkeypatch):
    sizes: list[int] = []
    randn = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *shape: sizes.append(shape[0]) or randn(*shape))
    assert gpus.measure_matmul_flops(torch.float32) > 0 and sizes == [384, 768, 1536]
    monkeypatch.setattr(gpus, "MATMUL_LIMIT", 0.0)
    sizes.clear()
    assert gpus.measure_matmul_flops(torch.bfloat16) > 0 and sizes == [384]


def test_a_cpu_is_timed_once_for_a_number_of_threads(monkeypatch):
    timed = []
    monkeypatch.setattr(gpus, "measure_matmul_flops", lambda dtype: timed.append(dtype) or float(len(timed)))
    gpus._cpu_flops.cache_clear()
    try:
        figures = []
        for threads in (1, 1, 2):
            monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
            figures.append(gpus.peak_flops(torch.device("cpu"), torch.float32))
        assert figures == [1, 1, 2]
    finally:
        gpus._cpu_flops.cache_clear()
