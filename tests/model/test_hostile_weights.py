"""Weights and architecture files never run code, and damaged ones end in one line without filling the memory."""

import io
import json
import os
import pickle
import resource
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from beton_tools.base.errors import UserError
from fastft.model import Tower, load_arch, load_tower_weights
from tests.model.test_weights import Shell

CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32},
}
MEMORY_MIB = 256  # that a refused file may add to the process's peak


@pytest.fixture
def arch(tmp_path: Path) -> str:
    (tmp_path / "tiny.json").write_text(json.dumps(CONFIG))
    return str(tmp_path / "tiny.json")


def state_of(arch: str) -> dict[str, torch.Tensor]:
    return {f"visual.{k}": v for k, v in Tower(load_arch(arch)).state_dict().items()}


def refused(action: Callable[[], object]) -> str:
    """The message of the one-line UserError that the action must end in, within the limit of memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError) as error:
        action()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY_MIB << 10
    message = str(error.value)
    assert message and "\n" not in message and len(message) < 1000
    return message


# files that would run code ---------------------------------------------------------------------------------------------


class OnLoad(torch.nn.Module):
    """Its `__setstate__` creates or overwrites a file, as `torch.jit.load` calls it."""

    def __init__(self, target: str):
        super().__init__()
        self.target = target
        self.weight = torch.nn.Parameter(torch.zeros(2))

    @torch.jit.export
    def __getstate__(self) -> tuple[str, torch.Tensor, bool]:
        return self.target, self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, torch.Tensor, bool]) -> None:
        self.target = state[0]
        self.weight = torch.from_file(self.target, True, 4)  # used, so that it is not optimised away
        self.training = state[2]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class OnForward(Shell):
    """Its `forward` creates a file."""

    def __init__(self, target: str, state: dict[str, torch.Tensor]):
        super().__init__(state)
        self.target = target

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.from_file(self.target, True, 4).sum()


def test_setstate_of_a_torchscript_archive_is_not_called(arch, tmp_path):
    target, path = tmp_path / "was-run", str(tmp_path / "evil.pt")
    torch.jit.script(OnLoad(str(target))).save(path)
    target.unlink(missing_ok=True)
    torch.jit.load(path)
    assert target.exists()  # the payload works
    target.unlink()
    message = refused(lambda: load_tower_weights(Tower(load_arch(arch)), path, arch))
    assert "state dict" in message
    assert not target.exists()


def test_forward_of_a_torchscript_archive_is_not_called(tmp_path):
    (tmp_path / "quick.json").write_text(json.dumps({**CONFIG, "quick_gelu": True}))
    arch, target, path = str(tmp_path / "quick.json"), tmp_path / "was-run", str(tmp_path / "w.pt")
    state = state_of(arch)
    torch.jit.script(OnForward(str(target), state)).save(path)
    tower = Tower(load_arch(arch))
    load_tower_weights(tower, path, arch)
    assert torch.equal(tower.class_embedding, state["visual.class_embedding"])
    assert not target.exists()


class Payload:
    """Unpickles by calling a function."""

    def __init__(self, function: Callable[..., object], *arguments: object):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def zip_of(records: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def torchscript_of(pickled: bytes, **records: bytes) -> bytes:
    needed = {"a/constants.pkl": b"", "a/data.pkl": pickled, "a/version": b"3\n"}
    return zip_of({**needed, **{f"a/{k}": v for k, v in records.items()}})


@pytest.mark.parametrize("protocol", [2, *(pytest.param(p, marks=pytest.mark.slow) for p in (0, 4))])
@pytest.mark.parametrize("function", ["os.system", "torch.from_file"])
@pytest.mark.parametrize("container", ["pickle", "zip", "torchscript", "constants"])
def test_a_call_in_a_pickle_is_not_made(arch, container, function, protocol, tmp_path):
    target = tmp_path / "was-run"
    payload = {
        "os.system": Payload(os.system, f"touch {target}"),
        "torch.from_file": Payload(torch.from_file, str(target), True, 4),
    }[function]
    data = pickle.dumps({"visual.conv1.weight": payload}, protocol)
    pickle.loads(data)
    assert target.exists()  # the payload works
    target.unlink()
    path = tmp_path / "w.pt"
    path.write_bytes({
        "pickle": data,
        "zip": zip_of({"a/data.pkl": data, "a/version": b"3\n"}),
        "torchscript": torchscript_of(data),
        "constants": zip_of({"a/constants.pkl": data, "a/data.pkl": b"}."}),
    }[container])  # fmt: skip
    refused(lambda: load_tower_weights(Tower(load_arch(arch)), str(path), arch))
    assert not target.exists()


def test_names_of_globals_are_never_imported(arch, tmp_path, monkeypatch):
    (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'was-run')!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for pickled in (b"cevil_module\nf\n.", b"cevil_module\nf\n)R.", b"cevil_module\nC\n)\x81."):
        path = tmp_path / "w.pt"
        path.write_bytes(torchscript_of(pickled))
        refused(lambda path=path: load_tower_weights(Tower(load_arch(arch)), str(path), arch))
    assert not (tmp_path / "was-run").exists()


# damaged files ---------------------------------------------------------------------------------------------------------


def bomb() -> bytes:
    """A tuple of two references to a tuple of two references to ...: 2^200 leaves."""
    return b")q\x00" + b"h\x00h\x00\x86q\x00" * 200


def nested_objects(depth: int) -> bytes:
    """An object in an object in ...: the names of the innermost are `depth` times as long as those of the first."""
    start, end = b"c__torch__\nA\n)\x81}X\x01\x00\x00\x00a", b"sb"
    return start * depth + b"N" + end * depth + b"."


TORCHSCRIPT_DAMAGE = {
    "pickle empty": torchscript_of(b""),
    "pickle without an end": torchscript_of(b"}"),
    "stack underflow": torchscript_of(b"R."),
    "mark missing": torchscript_of(b"t."),
    "memo missing": torchscript_of(b"h\x07."),
    "huge memo index": torchscript_of(b"}r\xff\xff\xff\xff."),
    "text longer than the file": torchscript_of(b"X\xff\xff\xff\xff."),
    "bomb as an object": torchscript_of(bomb() + b"."),
    "bomb as a storage": torchscript_of(bomb() + b"Q."),
    "object of itself": torchscript_of(b"c__torch__\nA\n)\x81q\x00}X\x01\x00\x00\x00ah\x00sb."),
    "persistent id of a number": torchscript_of(b"NQ."),
    "names of 2,000 nested objects": torchscript_of(nested_objects(2000)),
    "a name that is a tuple": torchscript_of(b"c__torch__\nA\n)\x81})Nsb."),
    "a bytearray of 1.4 GB": torchscript_of(b"c__torch__\nA\n)\x81}X\x01\x00\x00\x00acbuiltins\nbytearray\nJ\x80\x0e<U\x85Rsb."),
    "records in two folders": zip_of(
        {"b/data.pkl": b"}.", "b/version": b"3\n", "a/constants.pkl": b"", "a/data.pkl": b"}.", "a/version": b"3\n"}
    ),
    "no data.pkl": zip_of({"a/constants.pkl": b""}),
    "compressed record": zip_of({"a/constants.pkl": b"", "a/data.pkl": bytes(1 << 20)}, zipfile.ZIP_DEFLATED),
}  # fmt: skip


@pytest.mark.parametrize("zipped", [False, True])
def test_a_pickle_makes_no_bytearray(arch, zipped, tmp_path):
    """`bytearray(2**28)`, which `torch.load(weights_only=True)` calls."""
    data = b"\x80\x02cbuiltins\nbytearray\nJ\x00\x00\x00\x10\x85R."
    path = tmp_path / "w.pt"
    path.write_bytes(zip_of({"a/data.pkl": data, "a/version": b"3\n"}) if zipped else data)
    message = refused(lambda: load_tower_weights(Tower(load_arch(arch)), str(path), arch))
    assert "it holds a bytearray" in message


@pytest.mark.timeout(60)
@pytest.mark.parametrize("case", TORCHSCRIPT_DAMAGE)
def test_a_damaged_torchscript_archive_is_one_line(arch, case, tmp_path):
    path = tmp_path / "w.pt"
    path.write_bytes(TORCHSCRIPT_DAMAGE[case])
    assert str(path) in refused(lambda: load_tower_weights(Tower(load_arch(arch)), str(path), arch))


def directory(data: bytes) -> tuple[bytes, bytes]:
    """A zip file's records, and its directory without the end record."""
    length, start = struct.unpack_from("<LL", data, len(data) - 10)
    return data[:start], data[start : start + length]


def end_record(start: int, length: int, entries: int, comment: int = 0) -> bytes:
    return struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, entries, entries, length, start, comment)


def moved_directory(other: bytes, distance: int) -> bytes:
    """A central directory with its local offsets moved by `distance` bytes."""
    moved, at = bytearray(other), 0
    while at < len(moved):
        (offset,) = struct.unpack_from("<L", moved, at + 42)
        struct.pack_into("<L", moved, at + 42, offset + distance)
        name, extra, comment = struct.unpack_from("<3H", moved, at + 28)
        at += 46 + name + extra + comment
    return bytes(moved)


def two_directories(for_torch: bytes, for_python: bytes) -> bytes:
    """Python takes the directory before the end record, torch the one at the offset that the record has."""
    (records, first), (more, second) = directory(for_torch), directory(for_python)
    between = records + first + more
    second = moved_directory(directory(for_python)[1], len(records) + len(first))
    return between + second + end_record(len(records), len(second), second.count(b"PK\1\2"))


def test_zip_archives_that_python_and_torch_read_differently_are_refused(arch, tmp_path):
    """A compressed bomb and a call of `bytearray` behind a harmless directory, and TorchScript behind none."""
    harmless = zip_of({"a/data.pkl": b"}.", "a/version": b"3\n"})
    bomb = zip_of({"a/data.pkl": bytes(1 << 20)}, zipfile.ZIP_DEFLATED)
    script = torchscript_of(b"}.")
    records, listed = directory(harmless)
    cases = {
        "two directories": two_directories(bomb, harmless),
        "torchscript behind": two_directories(script, harmless),
        "trailing bytes": harmless + b"\0" * 22,
        "a comment": records + listed + end_record(len(records), len(listed), 2, 4) + b"text",
        "a gap": records + listed + bytes(8) + end_record(len(records), len(listed), 2),
        "bytes in front": b"PK\3\4" + harmless,
        "two records with the same name": zip_of({"a/data.pkl": b"}.", "a/DATA.PKL": b"}]."}),
    }
    for name, data in cases.items():
        path = tmp_path / f"{name}.pt"
        path.write_bytes(data)
        message = refused(lambda path=path: load_tower_weights(Tower(load_arch(arch)), str(path), arch))
        assert "zip archive" in message, (name, message)


def test_an_old_torch_is_refused_before_it_reads_a_pickle(arch, tmp_path, monkeypatch):
    torch.save(state_of(arch), tmp_path / "w.pt")
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.5.1"))
    message = refused(lambda: load_tower_weights(Tower(load_arch(arch)), str(tmp_path / "w.pt"), arch))
    assert "Install torch 2.6 or newer" in message


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def safetensors_of(state: dict[str, torch.Tensor], folder: Path) -> bytes:
    save_file(state, folder / "whole.safetensors")
    return (folder / "whole.safetensors").read_bytes()


def changed(name: str, value: object) -> Callable[[dict, Path], bytes]:
    return lambda state, _: saved({**state, f"visual.{name}": value})


WEIGHTS_DAMAGE: dict[str, Callable[[dict, Path], bytes | None]] = {
    "empty.pt": lambda state, _: b"",
    "random.pt": lambda state, _: bytes(range(256)) * 8,
    "half.pt": lambda state, _: truncated(saved(state)),
    "half.safetensors": lambda state, folder: truncated(safetensors_of(state, folder)),
    "empty.safetensors": lambda state, _: b"",
    "long header.safetensors": lambda state, _: struct.pack("<Q", 1 << 62) + b"{}",
    "offsets.safetensors": lambda state, _: (
        struct.pack("<Q", 62) + b'{"visual.conv1.weight":{"dtype":"F32","shape":[1099511627776]}'
    ),
    "integer keys.pt": lambda state, _: saved(dict(enumerate(state.values()))),
    "list.pt": lambda state, _: saved(list(state.values())),
    "nothing in it.pt": lambda state, _: saved({}),
    "one-dimensional.pt": changed("conv1.weight", torch.zeros(64)),
    "no positions.pt": changed("positional_embedding", torch.zeros(0, 64)),
    "integers.pt": changed("class_embedding", torch.zeros(64, dtype=torch.int64)),
    "complex.pt": changed("class_embedding", torch.zeros(64, dtype=torch.complex64)),
    "sparse.pt": changed("class_embedding", torch.zeros(64).to_sparse()),
    "meta.pt": changed("class_embedding", torch.zeros(64, device="meta")),
    "expanded.pt": changed("class_embedding", torch.zeros(1).expand(1 << 40)),
    "quantised.pt": changed("class_embedding", torch.quantize_per_tensor(torch.zeros(64), 0.1, 0, torch.qint8)),
    "no blocks.pt": lambda state, _: saved({k: v for k, v in state.items() if "resblocks" not in k}),
    "compressed.pt": lambda state, _: zip_of({"a/data.pkl": bytes(1 << 26)}, zipfile.ZIP_DEFLATED),
    "bytes.pt": lambda state, _: pickle.dumps({"visual.conv1.weight": Payload(bytearray, 1 << 40)}, 2),
    "protocol 4.pt": lambda state, _: pickle.dumps({"visual.conv1.weight": [1]}, 4),
    "deep.pt": lambda state, _: b"\x80\x02" + b"]" * 100_000 + b"." ,
    "fifo.pt": lambda state, folder: os.mkfifo(folder / "fifo.pt"),
    "folder.pt": lambda state, folder: (folder / "folder.pt").mkdir(),
    "nul\0.pt": lambda state, _: None,
}  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.filterwarnings("error:.*pickle protocol", "error:.*TypedStorage")
@pytest.mark.parametrize("name", WEIGHTS_DAMAGE)
def test_damaged_weights_are_one_line(arch, name, tmp_path):
    path = tmp_path / name
    data = WEIGHTS_DAMAGE[name](state_of(arch), tmp_path)
    if data is not None:
        path.write_bytes(data)
    assert str(path) in refused(lambda: load_tower_weights(Tower(load_arch(arch)), str(path), arch))


def vision(**changes: object) -> bytes:
    return json.dumps({**CONFIG, "vision_cfg": {**CONFIG["vision_cfg"], **changes}}).encode()


ARCH_DAMAGE: dict[str, bytes | Callable[[Path], object]] = {
    "empty": b"",
    "not UTF-8": b"\xff\xfe",
    "deep": b"[" * 100_000,
    "a list": b"[1]",
    "larger than the limit": b" " * (1 << 21),
    "absurd width": vision(width=1 << 40),
    "a width of 5000 digits": b'{"embed_dim": 1, "vision_cfg": {"width": ' + b"9" * 5000 + b"}}",
    "too many parameters": vision(width=1 << 18),
    "too many layers": vision(layers=100_000, width=32),
    "too many tokens": vision(image_size=1 << 20, patch_size=1),
    "absurd mlp_ratio": vision(mlp_ratio=1e300),
    "an infinite eps": vision(norm_kwargs={"eps": float("inf")}),
    "a FIFO": os.mkfifo,
    "a folder": Path.mkdir,
}  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize("case", ARCH_DAMAGE)
def test_a_damaged_architecture_is_one_line(case, tmp_path):
    path, damage = tmp_path / "arch.json", ARCH_DAMAGE[case]
    if callable(damage):
        damage(path)
    else:
        path.write_bytes(damage)
    assert str(path) in refused(lambda: load_arch(str(path)))


def test_an_image_size_cannot_make_a_tower_too_large():
    assert "128 patches" in refused(lambda: load_arch("ViT-B-16").at(16 * 100_000))
