"""The four stages of a run, in order: files, choose, head, train. `fastft train` and `fastft.fit` carry them out.

Each stage reads files and writes files into the run directory. It is skipped if its result is already there:

1. files (`fastft.photos`): photographs become `data/train.beton`, `data/val.beton` and `data/split.csv`.
2. choose (`fastft.choose`): `recipe.yaml`, in which every option has its final value, and `choices.json`. A budget may keep
   a linear probe at a larger image size, `larger_probe.safetensors`.
3. head (`fastft.head`): the head that the run starts from, `probe.safetensors` or `head.safetensors`, and for a probe
   `baseline.json` and `training_labels.json`.
4. train (`fastft.train`): checkpoints, `metrics.jsonl` and `result.json`.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from msgspec.structs import replace
from rich.console import Console

from beton_tools.base import torchrun
from beton_tools.base.console import make_console
from beton_tools.base.errors import UserError
from beton_tools.read.beton_set import BetonSet
from fastft.choose.choose import choose_options
from fastft.data.warnings import TRAINING, Warned
from fastft.evaluate.scores import EvaluationStopped
from fastft.head.fit_head import prepare_head
from fastft.jobs.choices_table import print_choices
from fastft.machine.distributed import World, connected, find_world
from fastft.machine.exits import Preempted
from fastft.machine.preempt import SignalGuard
from fastft.optim.schedule import small_batch_warnings
from fastft.photos.paths import holds_out_of_beton
from fastft.photos.prepare import prepare_data
from fastft.recipe import AskedRecipe, Recipe, parse_duration
from fastft.recipe.constants import EVAL_IMAGE_SIZE, IMAGE_SIZE, LAST, PROBE
from fastft.recipe.training_images import Images
from fastft.run.checkpoint import list_checkpoints
from fastft.run.evaluations import describe_figures
from fastft.run.identity import PER_HOST_OPTIONS, shared_options
from fastft.run.inputs import Inputs, OpenedImages, open_images, open_inputs, open_recipe_images, warn_of_images
from fastft.run.result import FirstRun, Result, WeightChoice, write_result
from fastft.run.run_directory import hold_run, load_run, run_folder
from fastft.run.said import Say, Stage, begin_warnings, collecting, keeping, line_printer
from fastft.train.setup import refuse_untrainable
from fastft.train.train import train

REFIT = "refit"  # a folder in the run directory


def run_recipe(recipe: AskedRecipe, console: Console | None = None) -> tuple[Path, Result]:
    """Train a recipe, or continue its run directory. With `train.refit`, train again on all images.

    Returns:
        (run directory, content of result.json).

    Raises:
        UserError: bad input.
        Preempted: another process is gone, or a signal stopped the run, after a checkpoint if the first step has begun.
        NonFinite: the loss is NaN or Inf.
        KeyboardInterrupt: SIGINT (Ctrl-C), after a checkpoint if the first step has begun. A second one ends at once.
    """
    console, warned = console or make_console(lasting=True), list[Warned]()
    say = collecting(line_printer(console), warned)  # the run directory is not held yet
    options, advice = recipe.train, partial(_where_it_continues, run_folder(recipe))
    if unused := torchrun.unused_tasks():
        say(unused)
    with connected(find_world(options.device, options.timeout_minutes, "train.device"), advice) as world:
        prepared, images = prepare_data(recipe, say, world)
        files, whole = None, None
        if options.refit:  # refuse files that cannot be read together before the first run
            files, whole = world.together(
                lambda: world.once_per_host(lambda: _open_together(recipe, prepared), _describe_data(prepared)),
                lambda opened: {},
            )
        result = run_stages(prepared, images, world, console, files, warned)
        return (run_folder(recipe), result) if whole is None else _refit(prepared, whole, result, world, console)


def run_stages(
    recipe: AskedRecipe,
    images: Images | None,
    world: World,
    console: Console,
    files: Mapping[str, BetonSet] | None = None,
    warned: Sequence[Warned] = (),
) -> Result:
    """Carry out the stages after the first, and return the content of result.json.

    Args:
        recipe: the recipe, which names .beton files.
        images: these files' source, if they were converted.
        files: files that are open already, by their text in the recipe.
        warned: the first stage's warnings.
    """
    say, limit = line_printer(console), recipe.train.stop_after
    deadline = math.inf if limit is None else time.monotonic() + parse_duration(limit, "train.stop_after")
    folder = run_folder(recipe)
    with SignalGuard() as guard, ExitStack() as opened:
        world.in_main(lambda: opened.enter_context(hold_run(folder)))
        asked, inputs = world.together(
            lambda: _open(recipe, images, world, files),
            lambda answer: {"recipes": shared_options(answer[0]), "data": answer[1].request},
        )
        if world.is_main:
            begin_warnings(folder, inputs.request, bool(list_checkpoints(folder / "checkpoints")), warned)

        def saying(stage: Stage) -> Say:
            return keeping(say, folder, stage, inputs.request) if world.is_main else say

        warns = images is None and world.is_main  # otherwise preparing them has warned
        for text in _stage(world, lambda: warn_of_images(asked, inputs.train, inputs.val) if warns else []):
            saying("files")(text)
        stop = guard.is_stop_requested
        final = _stage(world, lambda: choose_options(asked, inputs, world, stop, saying("choose")))
        world.check_consistent(None, {"recipes": shared_options(final)})
        if world.is_main:
            print_choices(final.choices, console)
        for text in small_batch_warnings(final, asked.given | asked.automatic):
            saying("train")(Warned(text, TRAINING))
        _stage(world, lambda: prepare_head(final, inputs, world, stop, saying("head")))
        world.barrier()  # process 0 has written the head, which all processes read
        return train(final, inputs, folder, world, guard, console, deadline)


def _open_together(recipe: AskedRecipe, prepared: AskedRecipe) -> tuple[dict[str, BetonSet], BetonSet]:
    """Open the training and validation images. Returns each side, by its text in the recipe, and both as one set."""
    files: dict[str, BetonSet] = {}
    sides = [path for path in (prepared.data.train, prepared.data.val) if path is not None]
    for path in sides:
        files[path] = open_images(path, recipe.data.classes_by_position, list(files.values()))
    whole = str(recipe.data.train) if holds_out_of_beton(recipe) else ",".join(sides)
    together = BetonSet.open(whole, classes_by_position=recipe.data.classes_by_position, opened=list(files.values()))
    return files, together


def _open(
    recipe: AskedRecipe, images: Images | None, world: World, files: Mapping[str, BetonSet] | None
) -> tuple[AskedRecipe, Inputs]:
    """Return (the requested recipe, its inputs). The recipe's weights may be another run's.

    Raises:
        UserError: the recipe cannot be trained. Nothing is written before this is checked.
    """
    if files is None:
        opened = world.once_per_host(lambda: _open_and_identify(recipe), _describe_data(recipe))
    else:
        opened = open_recipe_images(recipe, files)
    recipe, inputs = open_inputs(recipe, images, opened)
    refuse_untrainable(recipe, inputs, world)
    return recipe, inputs


def _describe_data(recipe: Recipe) -> str:
    """Return the folder and the options that decide which images are opened."""
    return f"{Path.cwd()} {recipe.data}"


def _open_and_identify(recipe: AskedRecipe) -> OpenedImages:
    """Open the images and read what identifies them, so that the other processes on this host need not read it again."""
    opened = open_recipe_images(recipe)
    for betons in (opened.train, opened.val, opened.selection):
        if betons is not None:
            betons.content  # noqa: B018 - computed at its first use
    return opened


def _stage(world: World, work: Callable[[], Any]) -> Any:
    """Carry out a stage before the first step. If an error occurs in this process only, it is published to the others."""
    try:
        return work()
    except EvaluationStopped:
        raise Preempted("stopped on a signal before the first step. The same command continues the run") from None
    except UserError as error:
        raise world.publish_error(error) from error


def _where_it_continues(folder: Path) -> str:
    checkpoints = list_checkpoints(folder / "checkpoints")
    after = f"continues after {checkpoints[-1].name}" if checkpoints else "starts anew: there is no checkpoint yet"
    return f"The same command {after}"


def _refit(recipe: AskedRecipe, whole: BetonSet, first: Result, world: World, console: Console) -> tuple[Path, Result]:
    """Train on the training and validation images together (`whole`), in RUN/refit. Returns the same as `run_recipe`.

    Every option has the first run's value, automatic ones too. Training ends with the epoch whose weights that run
    chose, and the same kind of weights is taken.
    """
    say, folder, chosen = line_printer(console), run_folder(recipe), first.weights
    if chosen is None:
        say("train.refit: no images were held out, so the weights were already trained on all images")
        return folder, first
    again, own = world.in_main(lambda: load_run(folder).recipe).asked(), recipe.flat()
    own |= {"data.train": whole.title, "data.val": None, "train.run_dir": str(folder / REFIT)}
    for option in PER_HOST_OPTIONS:
        again = again.with_option(option, own[option])
    unchosen = {"data.hold_out_beton": False, "data.selection_share": 0.0, "train.stop_when": None}
    stop = 0 if chosen.take == PROBE else chosen.epoch + 1  # 0: a linear probe needs no training
    if chosen.image_size is not None:  # the larger probe
        unchosen |= {IMAGE_SIZE: chosen.image_size, EVAL_IMAGE_SIZE: None}
    for option, value in ({"schedule.stop_epoch": stop} | unchosen).items():
        again = again.with_option(option, value)
    what = f"up to epoch {chosen.epoch}, whose {chosen.kind} weights were chosen"
    if chosen.take == PROBE:
        what = "but only the linear probe, which was chosen"
    say(f"train.refit: training again on all images, {what}")
    result = run_stages(again, Images.of_betons(whole, None), world, console, {whole.title: whole})
    reason = "the first run chose this kind (no images were held out from this run)"
    result = replace(
        result,
        weights=WeightChoice(
            take=PROBE if chosen.take == PROBE else LAST, kind=chosen.kind, epoch=chosen.epoch, reason=reason
        ),
        first_run=FirstRun(run=str(folder), weights=chosen, last=first.last, baseline=first.baseline),
    )
    if world.is_main:
        write_result(folder / REFIT, result)
    note = "weights trained on all images, so none were held out to score them. The first run had"
    say(f"{folder / REFIT}: {note} {describe_figures(chosen.figures)}")
    return folder / REFIT, result
