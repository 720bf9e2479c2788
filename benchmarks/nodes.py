"""The tables in docs/large-data.md: what a node reads and decodes per second, and what converting millions of images takes."""

from typing import Any

from costs import roofline_mfu
from records import document
from speed import find, published

from beton_tools.base.console import markdown_table as markdown
from fastft.bench.dataset import ORIGINAL, RESIZED
from fastft.cost.roofline import plan_mfus
from fastft.cost.work import recipe_flops
from fastft.machine.bench_result import Case, spread
from fastft.machine.gpus import GPUS
from fastft.model.recipe_model import recipe_arch
from fastft.recipe import load_recipe

GPU, GPUS_PER_NODE = "H100", 8
RECIPES = ("final_b16", "brief_b16_half", "final_b16_384", "final_l14")
FILES = (RESIZED, ORIGINAL)
WHOLE = {RESIZED: "loader.recipe.core", ORIGINAL: "loader.recipe-originals.core"}
ON_THE_CPU = ("read", "entropy decoding", "inverse DCT and colour", "hand-over")  # if a GPU does the rest


def node() -> str:
    """Tabulate what a node with eight GPUs asks of storage and processor."""
    kb = {files: _kilobytes(files) for files in FILES}
    whole = {files: spread(_ours(_case(WHOLE[files]))).median for files in FILES}
    decoding = {files: 1e6 / _microseconds(_case("augment.split", files=files)) for files in FILES}
    rows = []
    for name in RECIPES:
        slow, fast = images_per_second(name)
        cells = [f"`{name}`", f"{_round(slow)}-{_round(fast)}"]
        for files in FILES:
            read = (f"{rate * kb[files] / 1e6:.1f}" for rate in (slow, fast))
            cores = (f"{slow / rate[files]:.0f}-{fast / rate[files]:.0f}" for rate in (decoding, whole))
            cells += ["-".join(read), *cores]
        rows.append(cells)
    head = ["recipe", "images/s"]
    for files in FILES:
        head += [f"GB/s, {files}", f"cores, {files}, GPUs augment", f"cores, {files}, no GPU augmentation"]
    small, large = (f"{kb[files]:.0f} kB" for files in FILES)
    return (
        f"{markdown(head, rows)}\n\nFrom the slowest to the fastest of the [published trainings](measurements/published.md) that "
        f"resemble fastft's, as nobody has measured fastft's step on a GPU yet. An image takes {small} in "
        f"{RESIZED} and {large} in {ORIGINAL}. "
        f"Cores are of an {published()[0].machine.cpu}, on which one core prepares {whole[RESIZED]:,.0f} images/s from "
        f"{RESIZED} with the whole recipe, and {decoding[RESIZED]:,.0f} without augmentation; measured {published()[0].date}."
    )


def images_per_second(name: str) -> tuple[float, float]:
    """Return the training images per second of a node, from the slowest to the fastest of the plan."""
    recipe, gpu = load_recipe(name), GPUS[GPU]
    roofline = roofline_mfu(recipe, gpu, GPUS_PER_NODE)
    assert roofline is not None
    peak = GPUS_PER_NODE * gpu.peak_flops / recipe_flops(recipe, recipe_arch(recipe)).train
    fastest, _, slowest = plan_mfus(roofline, gpu)
    return slowest.value * peak, fastest.value * peak


def _case(key: str, **setting: Any) -> Case:
    found = find(published()[0], key, setting)
    assert found is not None, key
    return found[1]


def _ours(case: Case) -> Any:
    ours = case.contender("fastft")
    assert ours is not None
    return ours


def _kilobytes(files: str) -> float:
    return float(_case("decode.crop", files=files).setting["kB per image"])


def long_files() -> str:
    """Tabulate what very long files take in a host's memory, as memory.py has measured."""
    measured = document("memory")
    found = {(row["code"], row["images"], row["processes"], row["order"]): row for row in measured["rows"]}

    def cell(code: str, images: int, processes: int, order: str, stage: str) -> str:
        peak = found.get((code, images, processes, order), {}).get(f"{stage}, peak")
        return "" if peak is None else f"{peak / 1e9:.1f}"

    places = sorted({(images, processes) for _, images, processes, _ in found})
    rows = []
    for images, processes in places:
        at = (images, processes)
        stages = (("random", "opened"), ("random", "first batch"), ("blocks", "first batch"))
        cells = [cell(code, *at, order, stage) for order, stage in stages for code in ("before", "now")]
        if any(cells):
            rows.append([f"{images / 1e6:.0f} million", f"{processes}", *cells])
    columns = ("opening", "starting an epoch", "starting an epoch, `blocks`")
    heads = [f"{column}{when}" for column in columns for when in (", before", "")]
    return (
        f"{markdown(['images', 'processes', *heads], rows)}\n\nGB of a host's memory at the peak, in addition to what the "
        f"processes take before (synthetic files, {measured['cpu']}, {measured['date']}). Before: fastft 0.3. Empty: "
        "not measured."
    )


def _microseconds(case: Case) -> float:
    """Return the CPU time of an image's parts that stay on the CPU: the median round."""
    times = sorted(sum(r.figures[part] for part in ON_THE_CPU) for r in _ours(case).rounds)
    return times[len(times) // 2]


def _round(rate: float) -> str:
    return f"{round(rate, -2):,.0f}"


# converting millions --------------------------------------------------------------------------------------------------

SETS = (("ImageNet-21k", 14_000_000), ("LAION-400M", 400_000_000))
PER_PART = 1_000_000


def conversion() -> str:
    """Tabulate what converting millions of images in parts takes, from the synthetic shards of scale.py."""
    measured = document("scale")
    rate = spread(_ours(_case("convert.core", size="at most 500 px"))).median
    kb = _kilobytes(RESIZED)
    rows = [[name] for name in ("images", "parts", "converting, CPU hours", "listing, CPU minutes of every part",
                                "listing, memory of every part", "`.beton` files")]  # fmt: skip
    for _, images in SETS:
        share = images / measured["images"]
        parts = images // PER_PART
        cells = [
            f"{images / 1e6:.0f} million", f"{parts}", f"{images / rate / 3600:,.0f}",
            f"{measured['list_cpu_seconds'] * share / 60:,.1f}", f"{measured['list_bytes'] * share / 1e9:,.1f} GB",
            f"{images * kb / 1e9:,.1f} TB",
        ]  # fmt: skip
        for row, cell in zip(rows, cells, strict=True):
            row.append(cell)
    counts, cpu = measured["part_images"], measured["part_cpu_seconds"]
    assert measured["same_bytes"]
    spoken = f"{counts[0]:,}" if len(set(counts)) == 1 else f"{min(counts):,} to {max(counts):,}"
    again = (measured["killed_cpu_seconds"] + measured["resumed_cpu_seconds"]) / cpu[0]
    return (
        f"{markdown(['', *(name for name, _ in SETS)], rows)}\n\nExtrapolated from {measured['images']:,} synthetic images in "
        f"{measured['shards']} WebDataset shards and from the rate at which 500 px files are written, {rate:,.0f} images per CPU "
        f"second ({measured['cpu']}, {measured['date']}). The {measured['parts']} parts had {spoken} images each and took "
        f"{min(cpu):.1f} to {max(cpu):.1f} CPU seconds. A part that was killed at half its size and continued "
        f"took {again:.2f} times as long as without the interruption, and had the same bytes. It continues "
        f"after the last whole page of 8 MiB, of which these small parts have only {measured['part_bytes'][0] >> 23}."
    )
