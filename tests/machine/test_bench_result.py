"""The result of a benchmark: what was written is read again, and ratios are of paired rounds."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from beton_tools.base.errors import UserError
from fastft.bench import circumstances
from fastft.bench.circumstances import Watch, describe_processor
from fastft.bench.page.comparison import write_bench_page
from fastft.bench.suite import accepted, new_result
from fastft.machine.bench_result import (
    Case,
    Contender,
    Images,
    Measure,
    Processor,
    Result,
    Round,
    is_disturbed,
    ratio,
    read_result,
    spread,
    write_result,
)  # fmt: skip


def measure(better: str = "higher", **rounds: list[float]) -> Measure:
    contenders = [Contender(name=name, rounds=[Round(value=v) for v in values]) for name, values in rounds.items()]
    skipped = Contender(name="LitData", skipped="not installed: pip install litdata")
    case = Case(setting={"threads": 1}, contenders=[*contenders, skipped])
    return Measure(key="loader.recipe", bench="loader", title="Loader", unit="s", about="", cases=[case], better=better)


def ratios(measured: Measure) -> tuple[float, float, float] | None:
    case = measured.cases[0]
    found = ratio(measured, case, case.contenders[1])
    return found and (found.median, found.low, found.high)


def test_ratios_are_medians_over_paired_rounds():
    """A machine that is slow in one round slows both: pairs do not see it."""
    assert ratios(measure(fastft=[100.0, 50.0, 120.0], p=[50.0, 25.0, 60.0])) == (2.0, 2.0, 2.0)
    assert ratios(measure("lower", fastft=[1.0, 2.0], p=[2.0, 8.0])) == (3.0, 2.0, 4.0)
    assert ratios(measure(fastft=[90.0], p=[30.0, 90.0])) == (1.5, 1.5, 1.5)  # of the medians
    assert ratios(measure(fastft=[90.0], p=[0.0])) is None


def test_there_is_no_ratio_to_fastft_itself_nor_to_what_was_skipped():
    case = (whole := measure(fastft=[1.0], p=[2.0])).cases[0]
    assert ratio(whole, case, case.contenders[0]) is None and ratio(whole, case, case.contenders[2]) is None
    assert case.contender("LitData") is None and [c.name for c in case.skipped] == ["LitData"]


def test_a_measure_is_disturbed_if_other_programs_used_more_than_a_tenth_of_the_cores():
    for foreign, disturbed in ((1.58, False), (1.62, True)):  # of 16 cores
        one = measure(fastft=[1.0])
        one.cases[0].contenders[0].rounds = [Round(value=1.0, wall=2.0, foreign=foreign)]
        assert is_disturbed(one, 16) == disturbed


def test_a_result_is_read_as_it_was_written(tmp_path):
    result = new_result(Images(what="4 images", count=4, mean_kb=1.0), False, Watch("fastft bench loader"))
    result.measures.append(measure(fastft=[1.0, 3.0], p=[2.0, 4.0]))
    write_result(tmp_path / "loader.json", result)
    again = read_result(tmp_path / "loader.json")
    assert again == result
    found = again.find("loader.recipe", threads=1)
    assert found is not None and spread(found.contenders[0]).median == 2.0
    assert again.find("loader.recipe", threads=2) is None and again.find("loader.cold") is None


SHA = "0123456789abcdef" * 4


def test_evidence_is_read_again_and_checked(tmp_path):
    """Order, checksums, versions of packages and the processor's numbers. Older files without them are read."""
    images = Images(what="4 images", count=4, mean_kb=1.0, sha256=SHA)
    result = new_result(images, False, Watch("fastft bench loader --seed 7", 7))
    result.measures.append(measure(fastft=[1.0, 3.0], p=[2.0, 4.0]))
    case = result.measures[0].cases[0]
    case.order = [["p", "fastft"], ["fastft", "p"]]
    result.sessions[0].betons = {"500 px files": SHA}
    path = tmp_path / "loader.json"
    write_result(path, result)
    assert read_result(path) == result
    machine = result.machine
    assert result.sessions[0].seed == 7 and machine.packages["numpy"] == machine.libraries["numpy"]
    assert len(machine.packages) > len(machine.libraries) and machine.processor.flags
    assert set(machine.instruction_sets) <= set(machine.processor.flags)
    for order in ([["p", "fastft"]], [["p", "fastft"], ["p", "p"]], [["p", "fastft"], ["p", "fastft", "timm"]]):
        case.order = order
        write_result(path, result)
        with pytest.raises(UserError, match=r"case 1 of loader\.recipe: its order does not match its rounds"):
            read_result(path)
    case.order, images.sha256 = [], SHA[:-1]
    write_result(path, result)
    with pytest.raises(UserError, match="sha256"):
        read_result(path)
    older = read_result(Path("benchmarks/results/amd-epyc.json"))
    assert older.images.sha256 is None and older.machine.processor is None and not older.machine.packages
    assert older.sessions[0].seed is None and older.measures[0].foreign is None


def test_the_processor_is_described_as_far_as_the_system_tells(monkeypatch):
    arm = "processor\t: 0\nBogoMIPS\t: 2100\nFeatures\t: fp asimd sve\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n\n"
    amd = (
        "vendor_id\t: AuthenticAMD\ncpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\nstepping\t: 1\nsiblings\t: 4\n"
        "cpu cores\t: 2\nflags\t\t: avx2 hypervisor\n"
    )
    found = []
    for text in (arm, amd, ""):
        monkeypatch.setattr(circumstances, "_read", lambda path, text=text: text if path == "/proc/cpuinfo" else "")
        found.append(describe_processor())
    assert found[0] == Processor(vendor="0x41", model="0xd40", flags=["fp", "asimd", "sve"])
    assert (found[1].family, found[1].model, found[1].stepping, found[1].threads_per_core) == ("26", "2", "1", 2)
    assert found[1].is_virtual and found[2] == Processor()


def test_mfus_that_were_stored_for_cpus_are_not_shown(tmp_path):
    path = Path("benchmarks/results/amd-epyc.json")
    assert '"mfu": 1.0' in path.read_text()  # as earlier versions measured it
    result = read_result(path)
    assert result.machine.gpu is None and result.measure("step.train") and not result.measure("step.mfu")
    rounds = [r for m in result.measures for case in m.cases for c in case.contenders for r in c.rounds]
    assert not any("mfu" in r.figures for r in rounds) and any("waiting" in r.figures for r in rounds)
    write_bench_page([result], tmp_path / "page.html")
    assert "MFU" not in (tmp_path / "page.html").read_text()


def impossible(gpu: str) -> Result:
    result = new_result(Images(what="4 images", count=4, mean_kb=1.0), False, Watch("fastft bench step"))
    result.machine.gpu = gpu
    result.measures.append(measure(fastft=[0.5, 0.6], p=[0.9, 1.05]))
    return result


@pytest.mark.parametrize("unit", ["share", "images/s"])
def test_a_share_above_100_percent_is_refused(tmp_path, unit):
    """When it is measured, the rest of the measure is kept, and a note says why. A file with one is not read."""
    result, notes = impossible("made-up GPU"), []
    result.measures[0].unit = unit
    peer = result.measures[0].cases[0].contenders[1]
    if unit != "share":
        peer.rounds[0].figures = {"mfu": 1.29, "read_mb": 3.0}
    write_result(tmp_path / "step.json", result)
    with pytest.raises(UserError, match=r"p in loader\.recipe has .* A share cannot be above 100 %"):
        read_result(tmp_path / "step.json")
    kept = accepted(result.measures[0], notes)
    assert len(notes) == 1 and ("105.0%" if unit == "share" else "129.0%") in notes[0]
    assert kept is None if unit == "share" else peer.rounds[0].figures == {"read_mb": 3.0}
    result.measures = [kept] if kept else []
    write_result(tmp_path / "step.json", result)
    assert read_result(tmp_path / "step.json") == result


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "cannot be read as a fastft bench result"),
        ("[]", "not a fastft bench result"),
        ('{"measures": []}', "format 1"),
    ],
)
def test_another_file_is_refused_in_one_line(tmp_path, text, reason):
    path = tmp_path / "b.json"
    path.write_text(text)
    with pytest.raises(UserError, match=reason):
        read_result(path)


def test_texts_that_would_move_the_cursor_or_turn_a_pages_text_are_escaped(tmp_path):
    """ESC starts a terminal's commands, and U+202E turns the text that follows."""
    path, page, hostile = tmp_path / "b.json", tmp_path / "page.html", "\x1b[31mred\u202eder"
    text = Path("benchmarks/results/amd-epyc.json").read_text()
    value = json.loads(text)
    value["machine"]["cpu"] = hostile
    value["notes"], value["images"]["what"] = [hostile], hostile
    value["machine"]["libraries"][hostile] = hostile
    value["sessions"][0]["command"] = hostile
    for measure in value["measures"]:
        for case in measure["cases"]:
            case["contenders"][-1]["differences"] = [hostile]
    path.write_text(json.dumps(value))
    write_bench_page([read_result(path)], page)
    written = page.read_text()
    assert "\x1b" not in written and "\u202e" not in written
    assert "\\x1b[31mred\\u202eder" in written
    assert read_result(path).notes == ["\\x1b[31mred\\u202eder"]


def test_the_disk_is_named_with_its_file_system_and_kind(monkeypatch, tmp_path):
    mounts = [SimpleNamespace(mountpoint=name, fstype=kind) for name, kind in (("/", "ext4"), ("/nowhere", "xfs"))]
    monkeypatch.setattr(circumstances.psutil, "disk_partitions", lambda all: mounts)
    assert circumstances.describe_disk(tmp_path).split()[0] == "ext4"
    monkeypatch.setattr(circumstances, "_read", lambda path: "1" if path.endswith("rotational") else "ST4000 VN008 ")
    monkeypatch.setattr("pathlib.Path.is_file", lambda self: True)
    monkeypatch.setattr(circumstances, "VIRTUAL_DISKS", ("none",))
    assert circumstances.describe_disk(tmp_path).endswith(", ST4000 VN008, rotating")
