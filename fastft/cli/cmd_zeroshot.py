"""`fastft zeroshot RECIPE`."""

import argparse
from pathlib import Path

from beton_tools.base import torchrun
from beton_tools.base.atomic import refuse_existing
from beton_tools.base.console import say
from beton_tools.base.progress_bar import progress
from fastft.cli.arguments import add_recipe, add_shared, show
from fastft.cli.cmd_eval import print_evaluation
from fastft.recipe import load_recipe
from fastft.recipe.load import EVALUATED_PART
from fastft.recipe.schema import PUBLISHED

EXAMPLE = "fastft zeroshot final_b16 --data val.beton --out head.safetensors"
TAKES_OPTIONS = True
# the classifier is published with the weights, so its images are what the weights want, unless the command line says otherwise
AS_PUBLISHED = [f"--{option}={PUBLISHED}" for option in EVALUATED_PART]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_recipe(parser)
    data = "file to evaluate on (default: the recipe's validation file). The training file is --data.train"
    add("--data", metavar="FILE.beton", type=Path, help=data)
    names = "file with a class name on each line, by label (default: open_clip's names for ImageNet, otherwise the folder names)"
    add("--names", metavar="FILE", type=Path, help=names)
    texts = "the texts around a name: OpenAI's 80 (the default), 7 of these, or a file with lines such as 'a photo of a {}.'"
    add("--templates", default="openai", metavar="openai|simple|FILE", help=texts)
    add("--out", metavar="HEAD.safetensors", type=Path, help="write the head, for --model.head")
    add_shared(parser, "only-present-classes", "device", "json", "overwrite")


def run(args: argparse.Namespace) -> int:
    from fastft.evaluate.zero_shot import evaluate_zero_shot

    if args.out is not None:
        refuse_existing(args.out, args.overwrite)
    scores, prompts = evaluate_zero_shot(
        load_recipe(args.recipe, [*AS_PUBLISHED, *args.overrides]),
        args.data,
        args.device,
        names=args.names,
        templates=args.templates,
        out=args.out,
        only_present_classes=args.only_present_classes,
        progress=progress("text embeddings", "classes", "classes"),
    )
    if torchrun.rank() == 0:
        say(f"{scores.weights}: names from {prompts.names_source}, {len(prompts.templates)} templates")
        show(scores, args.json, print_evaluation)
        if args.out is not None:
            say(f"{args.out}: a head for --model.pool=token --model.head={args.out}")
    return 0
