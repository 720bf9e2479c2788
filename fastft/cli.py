"""The `fastft` command: parse, call, print. Bad input ends in one line and exit code 2."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from beton_tools import convert
from beton_tools.errors import UserError
from fastft import __version__
from fastft.bench.arguments import BENCHES, add_arguments
from fastft.train.ends import EXIT_REQUEUE, LoneError, NonFinite, PeerCrashed, Preempted

EXIT_BAD_INPUT = 2
OVERRIDES = "any recipe option as --section.key=value, e.g. --optim.lr=3e-4 (fastft explain lists them all)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit code."""
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    if rest and not getattr(args, "takes_overrides", False):
        args.parser.error(f"unrecognized arguments: {' '.join(rest)}")
    args.overrides = rest
    try:
        return args.run(args)
    except UserError as error:
        _complain(args.command, error)
        return EXIT_BAD_INPUT
    except Preempted as stop:
        _complain(args.command, stop)
        return EXIT_REQUEUE
    except (NonFinite, PeerCrashed) as error:
        _complain(args.command, error)
        return 1
    except KeyboardInterrupt:
        print(f"fastft {args.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as head, has seen enough
        sys.stderr.close()
        return 0
    except OSError as error:  # no space, no permission, no such place: the user's to mend
        place = f"{error.filename}: " if error.filename else ""
        _complain(args.command, f"{place}{error.strerror or error}")
        return EXIT_BAD_INPUT


def _complain(command: str, error: object) -> None:
    """One line; of several processes on a host (torchrun), the first one's, and that of one which is alone with its error."""
    if os.environ.get("LOCAL_RANK", "0") == "0" or isinstance(error, LoneError):
        print(f"fastft {command}: {error}", file=sys.stderr)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastft", description="Fine-tune CLIP vision transformers for the fewest GPU-hours."
    )
    parser.add_argument("--version", action="version", version=f"fastft {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_convert(commands)
    _add_train(commands)
    _add_explain(commands)
    _add_preview(commands)
    _add_cost(commands)
    _add_sweep(commands)
    _add_eval(commands)
    _add_predict(commands)
    _add_export(commands)
    _add_demo(commands)
    _add_report(commands)
    _add_bench(commands)
    _add_doctor(commands)
    return parser


def _command(
    commands: argparse._SubParsersAction,
    name: str,
    run: Callable[[argparse.Namespace], int],
    help: str,
    example: str,
    recipe: bool = False,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog=f"example:\n  {example}" + (f"\n\n{OVERRIDES}" if recipe else ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run, takes_overrides=recipe, parser=parser)
    if recipe:
        parser.add_argument("recipe", metavar="RECIPE", help="recipe file, such as rcp/final_b16.yaml")
    return parser


# convert --------------------------------------------------------------------------------------------------------------


def _add_convert(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("convert", help="write images to .beton files", allow_abbrev=False)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    folder = _command(
        kinds,
        "folder",
        convert.run_folder,
        "write one labelled set, a folder per class, to one .beton file",
        "fastft convert folder --data photos/train --out photos.beton --max-resolution 500",
    )
    convert.add_folder_arguments(folder)
    imagenet = _command(
        kinds,
        "imagenet",
        convert.run_imagenet,
        "write ImageNet, in whatever layout it lies, to train.beton and val.beton",
        "fastft convert imagenet --data /data/ILSVRC2012 --out in1k",
    )
    imagenet.epilog = f"{convert.IMAGENET_LAYOUTS}\n\n{imagenet.epilog}"
    convert.add_imagenet_arguments(imagenet)


# train ----------------------------------------------------------------------------------------------------------------


def _add_train(commands: argparse._SubParsersAction) -> None:
    _command(
        commands,
        "train",
        _run_train,
        "train a recipe; the same command on the same run directory continues it",
        "fastft train rcp/final_b16.yaml --data.train=in1k/train.beton --data.val=in1k/val.beton",
        recipe=True,
    )


def _run_train(args: argparse.Namespace) -> int:
    from fastft.config import load_recipe
    from fastft.train.loop import train

    train(load_recipe(args.recipe, args.overrides))
    return 0


# explain --------------------------------------------------------------------------------------------------------------


def _add_explain(commands: argparse._SubParsersAction) -> None:
    parser = _command(
        commands,
        "explain",
        _run_explain,
        "show what a recipe will do and cost, without data, weights or GPU",
        "fastft explain rcp/final_b16.yaml --at-step 6249 --json",
        recipe=True,
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--at-step", type=_whole_number, metavar="N", help="also show every group's lr at optimiser step N"
    )


def _run_explain(args: argparse.Namespace) -> int:
    from fastft.config import load_recipe
    from fastft.report.explain import explain, print_explanation

    values = explain(load_recipe(args.recipe, args.overrides), args.at_step)
    if args.json:
        print(json.dumps(values, indent=1))
    else:
        print_explanation(values, Console())
    return 0


# cost -------------------------------------------------------------------------------------------------------


def _add_cost(commands: argparse._SubParsersAction) -> None:
    parser = _command(
        commands,
        "cost",
        _run_cost,
        "GPU-hours and money of recipes or of whole sweeps, modelled from FLOPs and a GPU's MFU",
        "fastft cost rcp/final_*.yaml rcp/frugal_*.yaml --gpu v100 --gpus 8 --price 2.48\n"
        "  fastft cost rcp/tables/05_llrd/sweep.yaml --gpu a100",
    )
    parser.set_defaults(takes_overrides=True)
    parser.epilog = f"{parser.epilog}\n\n{OVERRIDES}"
    parser.add_argument(
        "files",
        metavar="RECIPE|SWEEP.yaml",
        nargs="+",
        type=Path,
        help="recipes, or sweeps: all rows and a total",
    )
    parser.add_argument("--gpu", required=True, help="V100, A100 or H100")
    parser.add_argument("--gpus", type=_positive(int), default=8, metavar="N", help="how many (default 8)")
    parser.add_argument(
        "--price", type=_positive(float), help="of one GPU-hour; without it no money is shown"
    )
    parser.add_argument("--measured", type=Path, metavar="BENCH.json", help="rates and MFU by fastft bench")
    parser.add_argument("--mfu", type=_share, help="MFU of your own, beside the published ones: 0.45 or 45%%")
    parser.add_argument("--cores-per-gpu", type=_positive(float), metavar="N", help="that feed each GPU")
    parser.add_argument(
        "--val-images",
        type=_positive(int),
        metavar="N",
        help="to evaluate on (default: 50,000 for ImageNet, as large a share of other data)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def _run_cost(args: argparse.Namespace) -> int:
    from fastft.report.cost_recipes import is_sweep, load_priceable
    from fastft.report.cost_table import Question, price_recipes, print_prices

    rows = None
    if any(map(is_sweep, args.files)):
        from fastft.sweep import read_trainings  # seconds of imports that recipes do not need

        recipes, rows = read_trainings(args.files, args.overrides)
    else:
        recipes = [load_priceable(path, args.overrides) for path in args.files]
    question = Question(
        args.gpu, args.gpus, args.price, args.measured, args.cores_per_gpu, args.mfu, args.val_images
    )
    values = price_recipes(recipes, question, rows)
    if args.json:
        print(json.dumps(values, indent=1))
    else:
        print_prices(values, Console())
    return 0


# sweep ------------------------------------------------------------------------------------------------------


def _add_sweep(commands: argparse._SubParsersAction) -> None:
    parser = _command(
        commands,
        "sweep",
        _run_sweep,
        "train or resume every row of a paper table, the paper's numbers beside ours",
        "fastft sweep rcp/tables/05_llrd/sweep.yaml --data.train=in1k/train.beton --data.val=in1k/val.beton\n"
        "  fastft sweep rcp/tables/*/sweep.yaml --dry-run",
    )
    parser.set_defaults(takes_overrides=True)
    parser.epilog = f"{parser.epilog}\n\n{OVERRIDES}"
    parser.add_argument(
        "sweeps", metavar="SWEEP.yaml", nargs="+", type=Path, help="files that list a table's rows"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what it would cost in GPU-hours, train nothing"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/sweeps"), help="runs and tables (default runs/sweeps)"
    )


def _run_sweep(args: argparse.Namespace) -> int:
    from fastft import sweep

    sweeps = [sweep.load_sweep(path) for path in args.sweeps]
    if args.dry_run:
        sweep.print_prices(sweep.price_sweeps(sweeps, args.overrides, args.out), Console())
        return 0
    outcomes = sweep.run_sweeps(sweeps, args.overrides, args.out, Console())
    return int(any(outcome.error for outcome in outcomes))


# preview --------------------------------------------------------------------------------------------------------------


def _add_preview(commands: argparse._SubParsersAction) -> None:
    parser = _command(
        commands,
        "preview",
        _run_preview,
        "draw what the model will see: originals, crops, results and the ops between",
        "fastft preview rcp/final_b16.yaml --data in1k/train.beton --out grid.png --epoch 3",
        recipe=True,
    )
    parser.add_argument("--data", type=Path, metavar="FILE.beton", help="default: the recipe's training file")
    parser.add_argument("--out", type=Path, required=True, metavar="PNG", help="picture to write")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the plan")
    parser.add_argument("--epoch", type=_whole_number, default=0, help="default 0")
    parser.add_argument("--count", type=_whole_number, default=12, help="images (default 12)")


def _run_preview(args: argparse.Namespace) -> int:
    from fastft.build import build_policy
    from fastft.config import load_recipe
    from fastft.report.preview import write_preview

    recipe = load_recipe(args.recipe, args.overrides)
    data = args.data or recipe.data.train
    if data is None:
        raise UserError("no images to preview; give --data FILE.beton")
    write_preview(
        data,
        build_policy(recipe),
        recipe.model.image_size,
        seed=recipe.train.seed,
        epoch=args.epoch,
        count=args.count,
        out=args.out,
        plan_out=args.json,
    )
    print(f"wrote {args.out}" + (f" and {args.json}" if args.json else ""))
    return 0


# eval, predict --------------------------------------------------------------------------------------------------------


def _add_eval(commands: argparse._SubParsersAction) -> None:
    parser = _command(
        commands,
        "eval",
        _run_eval,
        "exact top-1 and top-5 of a checkpoint on a .beton file",
        "fastft eval runs/final_b16 --data val.beton",
    )
    parser.add_argument(
        "checkpoint", metavar="CKPT", type=Path, help="a run directory (its best) or a checkpoint in it"
    )
    parser.add_argument(
        "--data", metavar="FILE.beton", type=Path, help="default: the recipe's validation file"
    )
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _run_eval(args: argparse.Namespace) -> int:
    from fastft.train.inference import evaluate_checkpoint

    scores = evaluate_checkpoint(args.checkpoint, args.data, args.device)
    if os.environ.get("RANK", "0") != "0":  # all processes have the sums of all
        return 0
    if args.json:
        print(json.dumps(scores))
    else:
        print(
            f"top-1 {scores['top1']:.3f} % (standard error {scores['standard_error']:.3f}), top-5 {scores['top5']:.3f} %, "
            f"loss {scores['loss']:.4f}, {scores['samples']} images"
        )
    return 0


def _add_predict(commands: argparse._SubParsersAction) -> None:
    parser = _command(
        commands,
        "predict",
        _run_predict,
        "label image files with a checkpoint",
        "fastft predict runs/demo photo.jpg holiday/ --topk 3",
    )
    parser.add_argument(
        "checkpoint", metavar="CKPT", type=Path, help="a run directory (its best) or a checkpoint in it"
    )
    parser.add_argument(
        "images", metavar="IMAGE", nargs="+", type=Path, help="image files, or folders of them"
    )
    parser.add_argument("--topk", type=_whole_number, default=5, help="classes per image (default 5)")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write a table instead of printing")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")


def _run_predict(args: argparse.Namespace) -> int:
    from fastft.train.inference import predict_files, print_predictions, write_predictions

    predictions = predict_files(args.checkpoint, args.images, args.topk, args.device)
    if args.csv is not None:
        write_predictions(predictions, args.csv)
    else:
        print_predictions(predictions)
    return 0


# export ---------------------------------------------------------------------------------------------------------------


def _add_export(commands: argparse._SubParsersAction) -> None:
    parser = _command(
        commands,
        "export",
        _run_export,
        "write a checkpoint for another library, checked by loading it there, with a model card",
        "fastft export runs/final_b16 --format timm --out final_b16_timm",
    )
    parser.add_argument(
        "checkpoint", metavar="CKPT", type=Path, help="a run directory (its best) or a checkpoint in it"
    )
    parser.add_argument("--format", required=True, choices=("timm", "open_clip", "safetensors", "onnx"))
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        help="a new folder (timm, open_clip) or a .safetensors or .onnx file",
    )


def _run_export(args: argparse.Namespace) -> int:
    from fastft.export import export_checkpoint

    done = export_checkpoint(args.checkpoint, args.format, args.out)
    print(
        f"{done.path}: loaded again with {args.format}, logits differ by {done.max_difference:.2g} at most "
        f"(largest logit {done.max_logit:.3g}); model card {done.card}"
    )
    return 0


# demo -----------------------------------------------------------------------------------------------------------------


def _add_demo(commands: argparse._SubParsersAction) -> None:
    parser = _command(
        commands,
        "demo",
        _run_demo,
        "from real photographs to a fine-tuned model and its picture, in minutes on a CPU",
        "fastft demo --out runs/demo",
    )
    parser.add_argument("--recipe", type=Path, default=Path("rcp/demo.yaml"), help="default rcp/demo.yaml")
    parser.add_argument(
        "--cache", type=Path, default=Path(".cache/demo"), help="downloads (default .cache/demo)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="results (default runs/demo)")


def _run_demo(args: argparse.Namespace) -> int:
    from fastft.demo.run import run_demo

    run_demo(args.recipe, args.cache, args.out, Console())
    return 0


# report -----------------------------------------------------------------------------------------------------


def _add_report(commands: argparse._SubParsersAction) -> None:
    parser = _command(
        commands,
        "report",
        _run_report,
        "one HTML page of a run, or of a benchmark file",
        "fastft report runs/final_b16 --price 2.48",
    )
    parser.add_argument(
        "source", metavar="RUN|BENCH.json", type=Path, help="a run directory, or a benchmark file"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="default: report.html in the run, BENCH.html"
    )
    parser.add_argument(
        "--price", type=_positive(float), help="of one GPU-hour; without it no money is shown"
    )
    parser.add_argument(
        "--gpus", type=_positive(int), metavar="N", help="that the run had, where it does not say"
    )
    parser.add_argument(
        "--against", type=Path, metavar="RECIPE", help="recipe to compare with (default: final_*)"
    )
    parser.add_argument(
        "--mistakes",
        choices=("auto", "always", "never"),
        default="auto",
        help="predict the validation images with the best checkpoint (auto: with a GPU, or where they are few)",
    )


def _run_report(args: argparse.Namespace) -> int:
    from fastft.report.bench_file import read_bench
    from fastft.report.bench_report import render_bench
    from fastft.report.run_report import render_run, write_page
    from fastft.report.runs import load_run

    if not args.source.exists():
        raise UserError(f"{args.source} does not exist; give a run directory or a benchmark file")
    if args.source.is_dir():
        run, out = load_run(args.source), args.out or args.source / "report.html"
        mistakes, why_none = _find_mistakes(run, args.mistakes)
        page = render_run(
            run,
            mistakes=mistakes,
            mistakes_note=why_none,
            gpus=args.gpus,
            price=args.price,
            against=args.against,
        )
    else:
        out = args.out or args.source.with_suffix(".html")
        page = render_bench(read_bench(args.source), args.source.name)
    write_page(page, out)
    print(out)
    return 0


def _find_mistakes(run: Any, when: str) -> Any:
    if when == "never":
        return None, "Left out, as asked (--mistakes=never)."
    from fastft.train.predictions import find_run_mistakes

    return find_run_mistakes(run, insist=when == "always")


# bench ------------------------------------------------------------------------------------------------------


def _add_bench(commands: argparse._SubParsersAction) -> None:
    parser = _command(
        commands,
        "bench",
        _run_bench,
        "measure this machine, against what one would use instead; JSON, a table and an HTML page",
        "fastft bench loader --images imagenet/train --peers ffcv,timm --out bench",
    )
    parser.add_argument(
        "name", choices=(*BENCHES, "all"), metavar="NAME", help=f"{', '.join(BENCHES)} or all"
    )
    add_arguments(parser)


def _run_bench(args: argparse.Namespace) -> int:
    from fastft.bench.run import run_bench

    run_bench(args.name, args, Console())
    return 0


# doctor -----------------------------------------------------------------------------------------------------


def _add_doctor(commands: argparse._SubParsersAction) -> None:
    parser = _command(
        commands,
        "doctor",
        _run_doctor,
        "is this machine ready: libraries, GPU, memory, disk; exit code 1 if something must be mended",
        "fastft doctor --data in1k/train.beton",
    )
    parser.add_argument(
        "--data", type=Path, metavar="FILE.beton", help="file to train on, to be held against memory"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def _run_doctor(args: argparse.Namespace) -> int:
    from fastft.report.doctor import as_json, examine, print_checks
    from fastft.report.machine import gather

    checks = examine(gather(args.data))
    result = as_json(checks)
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        print_checks(checks, Console())
    return 0 if result["ready"] else 1


def _positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        number = _number(kind, text)
        if number is None or not 0 < number < float("inf"):
            what = "whole number" if kind is int else "number"
            raise argparse.ArgumentTypeError(f"must be a {what} greater than 0, not '{text}'")
        return number

    return parse


def _share(text: str) -> float:
    number = _number(float, text.removesuffix("%"))
    share = None if number is None else number / (100 if text.endswith("%") else 1)
    if share is None or not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"must be a share such as 0.45 or 45%, not '{text}'")
    return share


def _whole_number(text: str) -> int:
    number = _number(int, text)
    if number is None or number < 0:
        raise argparse.ArgumentTypeError(f"must be a whole number, 0 or more, not '{text}'")
    return int(number)


def _number(kind: type[int] | type[float], text: str) -> float | None:
    try:
        return kind(text)
    except ValueError:
        return None


def _leave(code: int) -> NoReturn:
    """End the process with a code that torch cannot spoil.

    After an error the group of processes is left as it is: to dissolve it could mean to wait for one that is gone. At a
    normal exit its threads would then, now and then, abort the process (exit code 134, "terminate called ...").
    """
    if code != 0 and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    _leave(main())
