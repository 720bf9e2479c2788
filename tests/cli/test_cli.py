"""The command line's promises: frozen flags, examples in every help, one line and exit code 2 for bad input."""

import argparse
import errno
import json
import os
import re
import resource
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from fastft.cli import SECONDS_TO_REPORT, build_parser, main
from fastft.recipe import load_recipe, option_fields
from fastft.recipe.load import full_name


def subcommands(parser: argparse.ArgumentParser, prefix: str = "") -> dict[str, argparse.ArgumentParser]:
    """Every command without further subcommands, by its words."""
    found: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                found |= subcommands(child, f"{prefix} {name}".strip()) or {f"{prefix} {name}".strip(): child}
    return found


COMMANDS = subcommands(build_parser())
Refused = Callable[[list[str]], str]


def test_every_help_has_an_example() -> None:
    for name, parser in COMMANDS.items():
        assert f"example:\n  fastft {name.split()[0]}" in (parser.epilog or ""), name


def test_too_little_memory_is_one_line(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("fastft.cost.explanation.list_recipes", no_memory)
    assert (
        refused(["recipes"])
        == "fastft recipes: not enough memory. Give the command more memory, or use fewer workers\n"
    )
    monkeypatch.setattr("fastft.cli.import_module", no_memory)
    assert refused(["recipes"]) == "fastft: not enough memory. Give the command more memory, or use fewer workers\n"


@pytest.mark.parametrize("place", ["fastft.cli.import_module", "fastft.cost.explanation.list_recipes"])
@pytest.mark.parametrize("kind", [ImportError, OSError])
def test_a_library_that_cannot_be_loaded_is_one_line(
    place: str, kind: type[Exception], refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most libraries raise ImportError, also in the middle of a command. llvmlite raises OSError."""

    def fails(*_: object) -> None:
        raise kind("libllvmlite.so: failed to map segment from shared object")

    monkeypatch.setattr(place, fails)
    line = refused(["recipes"])
    assert "failed to map segment" in line
    if kind is ImportError or "import_module" in place:
        assert "Is memory limited (ulimit -v)? If not, `fastft doctor` tells you what is missing" in line


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (OSError(errno.EMFILE, "Too many open files", "x.jpg"), "Allow more of them (ulimit -n)"),
        (
            PermissionError(errno.EACCES, "Permission denied", "run/.partial-0a1b2c3d-recipe.yaml"),
            "fastft recipes: run/recipe.yaml: Permission denied. Correct this, then run the same command again",
        ),
        (FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"), "Set TMPDIR to a folder"),
        (OSError("AF_UNIX path too long"), f"AF_UNIX path too long in {tempfile.gettempdir()}. Set TMPDIR to a folder"),
    ],
)
def test_an_error_of_the_system_is_one_line_with_advice(
    error: OSError, advice: str, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr("fastft.cost.explanation.list_recipes", fails)
    assert advice in refused(["recipes"])


@pytest.mark.parametrize(
    ("megabytes", "command"),
    [(550, ["beton", "info", "x.beton"]), (550, ["fastft", "options"]), (1200, ["fastft", "train", "x"])],
)
def test_with_too_little_address_space_nothing_is_begun(megabytes: int, command: list[str]) -> None:
    """Just below what the libraries need, OpenBLAS asks for memory for ever, and no signal ends it."""
    program = {"fastft": "fastft.cli", "beton": "beton_tools.cli"}[command[0]]
    done = subprocess.run(
        [sys.executable, "-m", program, *command[1:]],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (megabytes * 10**6, resource.RLIM_INFINITY)),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "(ulimit -v), but the command needs at least" in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["predict", "RUN", "x.jpg", "--csv", "OUT.jpg"],
        ["eval", "RUN", "--csv", "OUT.beton"],
        ["report", "RUN", "--out", "OUT.jsonl"],
        ["preview", "final_b16", "--data=x.beton", "--out", "OUT.txt"],
        ["preview", "final_b16", "--data=x.beton", "--out", "OUT"],
        ["predict", "RUN", "x.jpg", "--csv", "LINK.csv"],
        ["eval", "RUN", "--csv", "/dev/full"],
    ],
    ids=" ".join,
)
def test_outputs_replace_no_other_kind_of_file(
    command: list[str], whole: Path, tmp_path: Path, refused: Refused
) -> None:
    for name in ("OUT", "OUT.jpg", "OUT.beton", "OUT.jsonl", "OUT.txt", "OUT.png"):
        (tmp_path / name).write_text("kept")
    (tmp_path / "LINK.csv").symlink_to(tmp_path / "OUT")
    given = [str(whole) if word == "RUN" else word for word in command]
    given = [str(tmp_path / word) if word.startswith(("OUT", "LINK")) else word for word in given]
    assert "cannot be written" in refused(given)
    assert {path.read_text() for path in tmp_path.iterdir()} == {"kept"}
    assert (tmp_path / "LINK.csv").is_symlink()


@pytest.mark.parametrize(
    "command",
    [
        ["predict", "RUN", "a.png", "--csv", "mine.csv"],
        ["eval", "RUN", "--csv", "mine.csv"],
        ["report", "RUN", "--out", "mine.html"],
    ],
)
def test_a_users_file_is_replaced_only_if_asked(
    command: list[str], whole: Path, tmp_path: Path, refused: Refused
) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    given = [str(whole) if word == "RUN" else str(tmp_path / word) if "." in word else word for word in command]
    Path(given[-1]).write_text("mine")
    assert f"{given[-1]} exists. Give another path, or replace it with --overwrite" in refused(given)
    assert Path(given[-1]).read_text() == "mine"
    assert main([*given, "--overwrite"]) == 0
    assert len(Path(given[-1]).read_text()) > 40


def test_flags_are_frozen() -> None:
    """New flags are a decision: they are added to flags.json too."""
    flags = {
        name: sorted(
            o
            for a in parser._actions
            for o in a.option_strings
            if o.startswith("--") and o != "--help" and a.dest != "overrides"
        )
        for name, parser in COMMANDS.items()
    }
    assert flags == json.loads(Path(__file__).with_name("flags.json").read_text())


# arguments that mean something else in another command; docs/options.md lists what each means
SEVERAL_MEANINGS = {
    "--classes-by-position", "--count", "--data", "--json", "--limit", "--out", "--overwrite", "--recipe",
    "--seed", "--workers",
}  # fmt: skip
# what these write has a name of its own, or is a run, which continues
WITHOUT_OVERWRITE = {"sweep", "demo", "bench"}


def test_an_argument_has_one_meaning_in_all_commands() -> None:
    meanings = runpy.run_path("docs/options_page.py")["arguments"]()
    assert all("None" not in of_argument for of_argument in meanings.values())
    assert {flag for flag, of_argument in meanings.items() if len(of_argument) > 1} == SEVERAL_MEANINGS
    having = {flag: {c for commands in meanings[flag].values() for c in commands} for flag in ("--out", "--overwrite")}
    assert having["--out"] - having["--overwrite"] == WITHOUT_OVERWRITE


def test_the_help_names_only_the_short_names_that_the_command_takes() -> None:
    for name, parser in COMMANDS.items():
        _, _, named = (parser.epilog or "").partition("Short names: ")
        for flag in filter(None, named.split(", ")):
            assert parser._option_string_actions[flag].dest == "overrides", (name, flag)


def test_the_help_of_a_benchmark_lists_its_measures(capsys: pytest.CaptureFixture[str]) -> None:
    for words, listed in ((["loader"], True), ([], False)):
        with pytest.raises(SystemExit) as stop:
            main(["bench", *words, "--help"])
        assert stop.value.code == 0
        said = capsys.readouterr().out
        assert ("loader.recipe-originals " in said and "loader.gpu " in said) == listed


SHORT = [
    "batch-size", "data", "device", "epochs", "image-size", "lr", "model", "out", "seed", "val-data", "weights", "workers",
]  # fmt: skip


def test_every_command_that_reads_a_recipe_takes_its_options_and_their_short_names() -> None:
    options = {f"--{name}" for name in (*option_fields(), *SHORT)}
    for name in ("train", "explain", "preview", "cost", "sweep", "zeroshot"):
        assert options <= set(COMMANDS[name]._option_string_actions), name
        own = {flag for flag in SHORT if COMMANDS[name]._option_string_actions[f"--{flag}"].dest != "overrides"}
        assert own == {"preview": {"out"}, "sweep": {"out"}, "zeroshot": {"data", "device", "out"}}.get(
            name, set()
        ), name  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [
        ["final_b16", "--optim.lr=1e-4", "--data.workers=2"],
        ["final_b16", "--optim.lr", "1e-4", "--workers", "2"],
        ["--lr", "1e-4", "--workers=2", "final_b16"],
        ["--lr=2", "-C", "final_b16", "--lr=1e-4", "--workers=2"],
        ["--workers", "2", "--config-file=rcp/final_b16.yaml", "--lr=1e-4"],
    ],
    ids=" ".join,
)
def test_options_are_written_with_a_space_or_an_equals_sign_long_or_short(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    args = build_parser(["train"]).parse_args(["train", *words])
    expected = load_recipe("final_b16", {"optim": {"lr": 1e-4}, "data.workers": 2})
    assert load_recipe(args.recipe, args.overrides) == expected
    assert expected == load_recipe("final_b16", {"lr": "1e-4", "workers": 2})


def test_the_help_of_train_lists_every_option_with_meaning_and_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "999")
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for name, field in option_fields().items():
        # Python 3.13 writes `--data.train, --data X`, earlier ones `--data.train X, --data X`
        assert re.search(rf"--{re.escape(name)}(, --[\w-]+)* X", said), name
        assert f"{field.metadata['help']} (default" in said, name
    assert "optim: AdamW, batch size and loss." in said and "(default 0.0006)" in said


def test_recipes_of_fastft_are_found_where_there_is_no_rcp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["rcp/final_b16.yaml", "rcp/tables/05_llrd.yaml[LLRD 0.65, 1e-4]"]
    here = [load_recipe(name) for name in names]
    monkeypatch.chdir(tmp_path)
    assert [load_recipe(name) for name in names] == here
    for name in names:
        assert main(["explain", name, "--json"]) == 0
        assert (
            capsys.readouterr().err == f"there is no {name} in this folder, so the one that comes with fastft is used\n"
        )
    assert main(["cost", "rcp/tables/07_erase.yaml", "--gpu", "a100"]) == 0
    (tmp_path / "rcp").mkdir()
    (tmp_path / "rcp/final_b16.yaml").write_text("extends: final_b16\noptim: {lr: 1}\n")
    assert load_recipe("rcp/final_b16.yaml").optim.lr == 1
    for name in ("rcp/final_b61.yaml", "rcp/../rcp/nothing.yaml", "rcp/tables/05_llrd.yaml[9]", "rcp"):
        assert main(["explain", name]) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "nowhere.yaml"],
        ["explain", "rcp/final_b16.yaml", "--model.arch=ViT-B-61"],
        ["report", "runs/nope"],
        ["eval", "nowhere"],
        ["predict", "nowhere", "README.md"],
        ["convert", "folder", "--data", "nowhere", "--out", "x.beton"],
        ["demo", "--recipe", "nowhere.yaml", "--cache", "/proc/nowhere"],
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("fastft ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cost", "r", "--gpu=v100", "--mfu=52"], "argument --mfu: must be a share such as 0.45 or 45%, not '52'"),
        (["cost", "r", "--gpu=v100", "--price=x"], "argument --price: must be a number greater than 0, not 'x'"),
        (["preview", "r", "--epoch=x"], "argument --epoch: must be a whole number, 0 or more, not 'x'"),
        (["preview", "r", "--out=x.png", "--epoch=99999999999"], "argument --epoch: must be at most 2147483647"),
        (["train", "data=x"], "give a recipe, such as photos, before options. Did you mean --data?"),
        (["trian", "photos"], "'trian' is not known. Did you mean train?"),
        (["preview", "r", "--out=x.png", "--count=0"], "argument --count: must be a whole number greater than 0, not '0'"),
    ],
)  # fmt: skip
def test_the_error_for_an_unreadable_value_names_the_expected_form(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and message in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cost", "photos", "--prce=2", "--optim.lr=1e-4"], "argument --prce. Did you mean --price?"),
        (["train", "photos", "--optim.rl", "1"], "argument --optim.rl. Did you mean --optim.lr?"),
        (["cost", "photos", "--model.lr=1"], "argument --model.lr. Did you mean --optim.lr?"),
        (["train", "photos", "--batchsize", "8"], "argument --batchsize. Did you mean --batch-size?"),
        (["train", "photos", "--label-smoothing=0"], "Did you mean --optim.label_smoothing?"),
        (["train", "photos", "--optim.learning_rate=1"], ". Did you mean --optim.lr?"),
        (["train", "photos", "--learning-rate", "1"], ". Did you mean --lr?"),
        (["train", "photos", "-b", "1"], "argument -b. Did you mean --batch-size?"),
        (["train", "photos", "data=x"], ". Did you mean --data?"),
        (["train", "photos", "--opt", "sgd"], "argument --opt. AdamW is the only optimizer"),
        (["train", "photos", "--scale", "0.1", "1"], "argument --scale. Did you mean --augment.scale_min?"),
        (["train", "photos", "--unknown", "-1"], "argument --unknown. See fastft train --help"),
        (["train", "photos", "more"], "argument more. See fastft train --help"),
        (["eval", "run", "--topk=3"], "argument --topk. See fastft eval --help"),
        (["train", "photos", "--steps", "100"], "argument --steps. Runs are counted in epochs. Use --epochs, or"),
        (["train", "photos", "--train.max_steps=100"], "argument --train.max_steps. Runs are counted in epochs"),
        (["sweep", "photos", "--max-steps", "100"], "argument --max-steps. Runs are counted in epochs"),
        (["train", "photos", "--devices", "2"], "argument --devices. Start a process for each GPU: torchrun"),
        (["train", "photos", "--gpus=2"], "argument --gpus. Start a process for each GPU: torchrun"),
        (["cost", "photos", "--num-gpus=2"], "argument --num-gpus. Did you mean --gpus?"),
        (["train", "photos", "--num-classes=5"], "Leave it out, or see --data.num_classes"),
        (["train", "photos", "--accelerator", "gpu"], "argument --accelerator. Did you mean --device?"),
        (["train", "photos", "--save-freq=5"], "argument --save-freq. Did you mean --train.checkpoint_epochs?"),
        (["train", "photos", "--max_time=1h"], "argument --max_time. Did you mean --train.stop_after?"),
        (["eval", "run", "--output=x.csv"], "argument --output. Did you mean --csv?"),
        (["eval", "run", "--val-data=x"], "argument --val-data. Did you mean --data?"),
        (
            ["eval", "run", "--batch-size=8"],
            "argument --batch-size. This is a recipe option, and fastft eval takes none",
        ),
        (["predict", "run", "a.jpg", "--threshold=8"], "argument --threshold. Did you mean --min-probability?"),
        (["predict", "run", "a.jpg", "--gpu=0"], "argument --gpu. Did you mean --device?"),
        (["report", "run", "--output=x.html"], "argument --output. Did you mean --out?"),
        (["report", "run", "--gpus=8"], "argument --gpus. See fastft report --help"),
        (["convert", "folder", "--data=x", "--out=x", "--size=500"], "Did you mean --max-resolution?"),
    ],
)
def test_a_mistyped_argument_is_refused_with_the_nearest(words: list[str], message: str, refused: Refused) -> None:
    assert message in refused(words)


# of timm 1.0's train.py, without those that are options here under the same name; some with the option or words of the answer
TIMM_FLAGS = {
    "-b": "--batch-size", "-j": "--workers", "--aa": "--augment.policy", "--amp": "--train.amp", "--amp-dtype": "--train.amp",
    "--amp-impl": "by itself", "--apex-amp": "--train.amp", "--aug-repeats": "no such augmentation",
    "--aug-splits": "no such augmentation", "--bce-loss": "--data.multi_label", "--bn-eps": "BatchNorm",
    "--bn-momentum": "BatchNorm", "--channels-last": "by itself", "--checkpoint-hist": "--train.keep_checkpoints",
    "--class-map": "read from the data", "--clip-grad": "--optim.clip_grad", "--clip-mode": "--optim.clip_grad",
    "--color-jitter": "--augment.color_jitter", "--cooldown-epochs": "cosine", "--crop-pct": "--train.eval_crop_pct",
    "--cutmix": "--augment.cutmix", "--cutmix-minmax": "no such augmentation", "--data-dir": "--data",
    "--decay-epochs": "cosine", "--decay-milestones": "cosine", "--decay-rate": "cosine", "--dist-bn": "BatchNorm",
    "--drop": "no dropout", "--drop-block": "no dropout", "--drop-connect": "--model.drop_path",
    "--drop-path": "--model.drop_path", "--eval-metric": "best epoch", "--experiment": "--out", "--fuser": "by itself",
    "--gaussian-blur-prob": "3aug", "--gp": "--model.pool", "--grad-accum-steps": "--train.micro_batch",
    "--grad-checkpointing": "--train.grad_checkpointing", "--grayscale-prob": "3aug", "--hflip": "--augment.hflip",
    "--img-size": "--image-size", "--initial-checkpoint": "--weights", "--input-size": "--image-size",
    "--interpolation": "--augment.interpolation", "--jsd-loss": "no such augmentation", "--layer-decay": "--optim.layer_decay",
    "--log-interval": "--train.log_every", "--log-wandb": "--train.tracker", "--lr-base": "--lr",
    "--lr-base-scale": "not scaled", "--lr-base-size": "not scaled", "--lr-cycle-decay": "cosine", "--lr-k-decay": "cosine",
    "--lr-noise": "cosine", "--mean": "--augment.mean", "--min-lr": "--schedule.min_lr", "--mixup": "--augment.mixup",
    "--mixup-mode": "no such augmentation", "--mixup-prob": "--augment.mix_prob",
    "--mixup-switch-prob": "--augment.mix_switch_prob", "--model-ema": "--ema.decay", "--model-ema-decay": "--ema.decay",
    "--model-ema-force-cpu": "by itself", "--model-kwargs": "patch_dropout", "--momentum": "AdamW",
    "--no-aug": "--augment.policy",
    "--no-prefetcher": "by itself", "--no-resume-opt": "again to continue", "--num-classes": "--data.num_classes",
    "--opt": "AdamW", "--opt-betas": "--optim.beta1", "--opt-eps": "--optim.eps", "--output": "--out",
    "--patience-epochs": "--train.stop_when", "--pin-mem": "by itself", "--pretrained": "--weights",
    "--ratio": "--augment.ratio_min", "--recount": "--augment.erase_count", "--recovery-interval": "--train.checkpoint_steps",
    "--remode": "--augment.erase_mode", "--reprob": "--augment.erase_prob", "--resplit": "no such augmentation",
    "--resume": "again to continue", "--save-images": "fastft preview", "--scale": "--augment.scale_min", "--sched": "cosine",
    "--smoothing": "--optim.label_smoothing", "--split-bn": "BatchNorm", "--start-epoch": "again to continue",
    "--std": "--augment.std", "--sync-bn": "BatchNorm", "--torchcompile": "--train.step", "--torchscript": "by itself",
    "--train-crop-mode": "--augment.crop", "--train-interpolation": "--augment.interpolation", "--train-split": "--data",
    "--tta": "--flip-average", "--use-multi-epochs-loader": "by itself", "--val-interval": "--train.eval_every",
    "--val-split": "--val-data", "--validation-batch-size": "by itself", "--vflip": "--augment.vflip", "--warmup-lr": "cosine",
    "--warmup-epochs": "--schedule.warmup_epochs", "--weight-decay": "--optim.weight_decay", "--worker-seeding": "by itself",
}  # fmt: skip


def test_a_command_line_of_timm_is_answered_at_once_with_the_option_for_each_flag(refused: Refused) -> None:
    words = [word for flag in TIMM_FLAGS for word in (flag, "0.1")]
    said = refused(["train", "photos", "--lr", "1e-4", *words])
    hints = dict(re.findall(r"(?<!\S)(--?[\w-]+) \(([^)]*)\)", said))
    wrong = {flag: hints.get(flag) for flag, hint in TIMM_FLAGS.items() if hint not in hints.get(flag, "")}
    assert wrong == {}
    options = re.findall(r"Did you mean --([\w.-]+)\?", said)
    assert {full_name(name) for name in options} <= set(option_fields())


def test_several_unknown_arguments_are_one_line(refused: Refused) -> None:
    said = refused(["eval", "run", "--topk", "3", "--optimizer=sgd", "--jsn"])
    assert "unrecognized arguments --topk, --optimizer, --jsn (Did you mean --json?). See fastft eval --help" in said


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("fastft tr", ["train "]),
        ("fastft train pho", ["photos "]),
        ("fastft train photos --optim.l", ["--optim.lr", "--optim.layer_decay", "--optim.label_smoothing"]),
        ("fastft export runs/x --format saf", ["safetensors "]),
    ],
)
def test_the_shell_completes_commands_recipes_options_and_choices(
    line: str, expected: list[str], tmp_path: Path
) -> None:
    asked = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "COMP_LINE": line, "COMP_POINT": str(len(line))}
    asked |= {"_ARGCOMPLETE_SUPPRESS_SPACE": "0", "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "answer")}
    subprocess.run([sys.executable, "-m", "fastft.cli"], env=os.environ | asked, check=False)
    assert sorted((tmp_path / "answer").read_text().split("\n")) == sorted(expected)


def test_what_works_without_ffcv_a_policy_without_torch_and_loaders_without_libraries_of_other_commands() -> None:
    """OpenCV, SciPy's linear algebra and pyarrow are for conversion and other commands: 150 MB."""
    code = (
        "import sys; sys.modules['ffcv'] = None\n"
        "from fastft.augment.policies import AugmentPolicy; AugmentPolicy('rand-m9-mstd0.5-inc1')\n"
        "assert not {'torch', 'numba'} & set(sys.modules)\n"
        "import fastft.data.loader\n"
        "assert not {'cv2', 'pyarrow', 'setuptools'} & set(sys.modules)\n"
        "import fastft.model, fastft.optim"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_of_several_processes_the_first_prints_and_the_others_give_it_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """torchrun ends the others as soon as one has ended: the one that prints must not be among them."""
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    for local_rank, lines, waits in (("1", 0, [SECONDS_TO_REPORT]), ("0", 1, [])):
        waited.clear()
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        assert main(["explain", "no_such_recipe"]) == 2
        assert capsys.readouterr().err.count("\n") == lines and waited == waits
