"""Load a recipe: read its files, apply the command line's options, check every value, and check the expected accuracy."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import fastargs

from beton_tools.base.errors import UserError
from fastft.recipe.check import fastargs_config, parse_duration
from fastft.recipe.constants import (
    AUTO,
    BUDGET,
    BY_BUDGET,
    EPOCHS,
    FROM_WEIGHTS,
    IMAGE_SIZE,
    PROBE,
    SHORT_NAMES,
    STOP_EPOCH,
)
from fastft.recipe.other_names import OTHER_NAMES, WITHOUT_OPTION
from fastft.recipe.published import published_preprocessing
from fastft.recipe.recipe_file import Layer, read_recipe
from fastft.recipe.schema import (
    PUBLISHED,
    SECTIONS,
    SHARES,
    About,
    AskedRecipe,
    Choice,
    FinalRecipe,
    R,
    Recipe,
    option_fields,
)
from fastft.recipe.yaml_file import CONTROL, shown

Written: TypeAlias = dict[str, tuple[Any, str]]  # by option: its value, and where it was written
FIELDS = option_fields()
CHECK_ERRORS = (ValueError, TypeError, KeyError, OverflowError)  # of OptionChecker.check
EVALUATED_PART = ("train.eval_crop_pct", "train.eval_resize")
LISTED = 4  # options named in a message about several
SIMILAR = 0.6  # lowest similarity at which an option is suggested


def load_recipe(reference: str | Path, overrides: Sequence[str] | Mapping[str, object] = ()) -> AskedRecipe:
    """Read a recipe, apply the overrides, and check everything.

    Options that are `auto` hold their default, and `automatic` names them. `fastft.choose` decides them from the
    images.

    `about.top1` is kept only while every option that changes the accuracy has the value with which it was stated.
    Otherwise `about.source` says which options differ.

    Args:
        reference: a path, the bare name of a recipe that comes with fastft, or TABLE[ROW]. See
            `fastft.recipe.recipe_file`.
        overrides: options as on the command line (`["--optim.lr=1e-4"]`) or as a dict (`{"optim.lr": 1e-4}`, or nested:
            `{"optim": {"lr": 1e-4}}`). Options in `SHORT_NAMES` may be written shorter: `--lr=1e-4`, `{"lr": 1e-4}`.

    Raises:
        UserError: missing file, bad YAML, unknown option (with the nearest one) or a value of the wrong kind.
    """
    file = read_recipe(reference)
    flags = _dict_layers(overrides) if isinstance(overrides, Mapping) else list(map(_flag_layer, overrides))
    command_line = Layer("the command line", {key: value for flag in flags for key, value in flag.values.items()})
    freed = _freed_by_budget([*file.layers, command_line])
    recipe = replace(_validate(file.name, [*file.layers, *flags], freed), given=frozenset(command_line.values))
    differing = _differs_from_expected(recipe, [*file.layers, command_line])
    return without_expectation(recipe, differing) if differing else recipe


def recipe_from_dict(name: str, sections: Mapping[str, Mapping[str, object]]) -> FinalRecipe:
    """Build a recipe from the nested values that `Recipe.as_dict` gives, as stored in checkpoints and run directories.

    Raises:
        UserError: unknown option, or a value of the wrong kind.
    """
    values = {f"{section}.{key}": value for section, options in sections.items() for key, value in options.items()}
    return FinalRecipe.of(_validate(name, [Layer(name, values)], complete=True))


def without_expectation(recipe: R, differing: Sequence[str]) -> R:
    """Return the recipe without an expected accuracy. `about.source` names the options that differ."""
    listed = ", ".join(differing[:LISTED])
    if len(differing) > LISTED:
        listed += f" and {len(differing) - LISTED} more"
    return replace(recipe, about=About(None, f"no expectation: differs in {listed}"))


def differences(recipe: Recipe, other: Recipe) -> dict[str, tuple[Any, Any]]:
    """Return the options that differ, in the schema's order -> (value in `recipe`, value in `other`)."""
    theirs = other.flat()
    return {key: (value, theirs[key]) for key, value in recipe.flat().items() if value != theirs[key]}


def _freed_by_budget(layers: Sequence[Layer]) -> set[str]:
    """Return the options that a time budget decides: those that are not set in the layer that sets it, or later.

    Raises:
        UserError: a layer sets the budget and both options that it could decide.
    """
    freed: set[str] = set()
    for layer in layers:
        if BUDGET in layer.values:
            freed = set(BY_BUDGET) if _is_given(layer.values[BUDGET]) else set()
            if freed and {IMAGE_SIZE, EPOCHS} <= {key for key, value in layer.values.items() if value != AUTO}:
                raise UserError(
                    f"{layer.where}: {BUDGET} has nothing to decide, because {IMAGE_SIZE} and {EPOCHS} are set. Omit one"
                )
        freed -= layer.values.keys()
        if EPOCHS in layer.values and layer.values[EPOCHS] != AUTO:  # they are trained
            freed.discard(STOP_EPOCH)
    return freed


def _is_given(budget: object) -> bool:
    try:
        return _params()[BUDGET].checker.check(budget) is not None
    except CHECK_ERRORS:  # refused with all other values
        return True


@cache
def _params() -> dict[str, fastargs.Param]:
    """Map `section.option` to its fastargs parameter."""
    return {".".join(path): param for path, param in fastargs_config().entries.items()}


def _flag_layer(text: str) -> Layer:
    """Return the layer for one `--section.key=value`, or for a short name."""
    key, equals, value = text.partition("=")
    if not text.startswith("--") or not equals:
        raise UserError(f"cannot read {shown(text)}. Write options as --section.key=value")
    where = text if CONTROL.search(text) is None else ascii(text)
    return Layer(where, {full_name(key[2:]): value})


def _dict_layers(options: Mapping[str, object]) -> list[Layer]:
    """Return a layer for each entry: an option, a short name, or a section with a dict of its options."""
    layers = []
    for key, value in options.items():
        values = {full_name(str(key)): value}
        if isinstance(value, Mapping):
            values = {f"{key}.{name}": v for name, v in value.items()}
        layers.append(Layer(f"{key}={shown(value)}", values))
    given = Counter(name for layer in layers for name in layer.values)
    if twice := [name for name, count in given.items() if count > 1]:
        raise UserError(f"{twice[0]} is given twice, by its name and by a short one or a section. Give it once")
    return layers


def full_name(name: str) -> str:
    """Return `section.option` for a short name (`lr`, `batch_size` or `batch-size`).

    Other names are returned unchanged.
    """
    return SHORT_NAMES.get(name.replace("-", "_"), name)


def _validate(
    name: str, layers: Sequence[Layer], freed: Set[str] = frozenset(), *, complete: bool = False
) -> AskedRecipe:
    """Check the layers' values.

    Args:
        freed: options that are decided automatically although a layer gives them a value, which they hold until then.
        complete: the layers hold every option, so that nothing is asked about the weights.
    """
    written = _last_values(layers)
    asked = [] if complete else _published_options(written)
    if asked:
        published = published_preprocessing(*(_text(written, key) for key in ("model.arch", "model.weights")))
        written |= {
            option: (getattr(published, FIELDS[option].metadata["published"]), published.source) for option in asked
        }
    sections, automatic = _check_values(written)
    recipe = AskedRecipe(name, **sections, automatic=automatic | freed)
    recipe = recipe if recipe.automatic else recipe.with_shares()
    check_together(recipe, undecided=recipe.automatic)
    values = recipe.flat()
    told = [option for option in asked if values[option] != FIELDS[option].default]
    return replace(recipe, choices=tuple(Choice(option, values[option], published.source) for option in told))


def _last_values(layers: Sequence[Layer]) -> Written:
    """Return the value that each option got last. Raises UserError if there is no such option."""
    written: Written = {}
    for layer in layers:
        for key, value in layer.values.items():
            if key not in FIELDS:
                raise UserError(f"{layer.where}: {_unknown(key)}")
            written[key] = value, layer.where
        for share, option in SHARES.items():  # a value that is set later wins over the other form of the same option
            if option in layer.values and share not in layer.values:
                written.pop(share, None)
    return written


def _check_values(written: Written) -> tuple[dict[str, Any], frozenset[str]]:
    """Return (the recipe's sections, the options that are `auto`). Raises UserError if a value breaks its limits."""
    automatic: set[str] = set()
    checked: dict[str, dict[str, object]] = {section: {} for section in SECTIONS}
    for key, param in _params().items():
        section, _, option = key.partition(".")
        value, where = written.get(key, (param.default, ""))
        try:
            converted = param.checker.check(value)
        except CHECK_ERRORS:
            raise UserError(f"{where}: {key} is {shown(value)}. It must be {param.checker.help()}") from None
        if FIELDS[key].metadata["auto"] and converted == AUTO:
            automatic.add(key)
            converted = param.default
        checked[section][option] = converted
    return {section: cls(**checked[section]) for section, cls in SECTIONS.items()}, frozenset(automatic)


def _published_options(written: Written) -> list[str]:
    """List the options that follow from the weights: those that say so, and some of those that nobody set.

    The part of the image that is evaluated follows for a model that is published with its accuracy: a head in the
    weights, or a linear probe that nothing is trained after. Otherwise it is the paper's.
    """
    start, stop = (_text(written, key) for key in ("model.head_init", STOP_EPOCH))
    is_whole_model = start == FROM_WEIGHTS or (start == PROBE and stop == "0")
    unset = {key for key in FIELDS if key not in written and (is_whole_model or key not in EVALUATED_PART)}
    return [
        key for key, field in FIELDS.items()
        if field.metadata["published"] and (key in unset or _text(written, key) == PUBLISHED)
    ]  # fmt: skip


def _text(written: Written, key: str) -> str:
    return str(written[key][0] if key in written else FIELDS[key].default)


def _differs_from_expected(recipe: Recipe, layers: Sequence[Layer]) -> list[str]:
    """List the options that change the accuracy and were set to another value after `about.top1` was."""
    if recipe.about.top1 is None:
        return []
    stated = max((i for i, layer in enumerate(layers) if "about.top1" in layer.values), default=-1)
    then = {key: value for layer in layers[: stated + 1] for key, value in layer.values.items()}
    later = {key for layer in layers[stated + 1 :] for key in layer.values}
    now = recipe.flat()

    def changed(key: str) -> bool:
        try:
            return bool(_params()[key].checker.check(then.get(key, FIELDS[key].default)) != now[key])
        except CHECK_ERRORS:  # a value that was overridden has not been checked
            return True

    return [
        key for key, field in FIELDS.items() if key in later and field.metadata["changes_accuracy"] and changed(key)
    ]


def check_together(recipe: Recipe, undecided: Set[str] = frozenset()) -> None:
    """Check the rules that span options, except those about options that are not decided yet.

    Raises:
        UserError: a rule is broken.
    """
    model, augment, train, schedule = recipe.model, recipe.augment, recipe.train, recipe.schedule
    for key, duration in (("train.stop_after", train.stop_after), (BUDGET, schedule.budget)):
        if duration is not None:
            parse_duration(duration, key)
    rules: list[tuple[bool, Set[str], str]] = [
        (
            schedule.warmup is None and schedule.warmup_epochs >= schedule.epochs, {"schedule.epochs", "schedule.warmup"},
            f"schedule.warmup_epochs ({schedule.warmup_epochs:g}) must be smaller than schedule.epochs "
            f"({schedule.epochs}). Set --schedule.warmup=0.2, a share of the epochs",
        ),
        (
            augment.scale_min > augment.scale_max, {"augment.scale_min"},
            "augment.scale_min is larger than augment.scale_max. Swap them",
        ),
        (
            augment.ratio_min > augment.ratio_max, set(),
            "augment.ratio_min is larger than augment.ratio_max. Swap them",
        ),
        (
            train.eval_weights == "ema" and recipe.ema.horizon is None and recipe.ema.decay == 0, {"ema.horizon"},
            "train.eval_weights is ema, but ema.decay is 0. Set train.eval_weights to both",
        ),
        (
            schedule.stop_epoch == 0 and model.head_init != "probe", {"model.head_init"},
            "schedule.stop_epoch is 0, which stops at the linear probe. Set model.head_init to probe",
        ),
        (
            model.head is not None and model.head_init != "small", {"model.head_init"},
            f"model.head and model.head_init={model.head_init} both set the head. Omit one of them",
        ),
        (
            model.rel_pos_bias and model.patch_dropout > 0, set(),
            "model.rel_pos_bias needs all patches. Set model.patch_dropout to 0 or model.rel_pos_bias to false",
        ),
    ]  # fmt: skip
    for is_broken, decided_by, message in rules:
        if is_broken and not decided_by & undecided:
            raise UserError(message)


# errors -----------------------------------------------------------------------------------------------------------------


def _unknown(key: str) -> str:
    """Return the message about a key that is no option: a misspelt one, a section without options, or another word."""
    if key in SECTIONS:
        return f"'{key}' must hold 'key: value' lines"
    near = nearest_option(key, FIELDS if "." in key else (*FIELDS, *SECTIONS, "extends"))
    hint = advice_without_option(key) or f"Valid sections: {', '.join(SECTIONS)}, extends. See fastft options"
    return f"unknown option {shown(key)}. {f'Did you mean {near!r}?' if near else hint}"


def advice_without_option(key: str) -> str | None:
    """Say what to do instead of using another library's option that fastft does not have."""
    return WITHOUT_OPTION.get(_own_name(key))


def _own_name(key: str) -> str:
    return key.lower().replace("-", "_").rpartition(".")[2]


def nearest_option(key: str, names: Iterable[str] = FIELDS) -> str | None:
    """Guess which option was meant: by another library's name, the same name elsewhere, or the most similar one."""
    section, option = key.lower().replace("-", "_").rpartition(".")[0], _own_name(key)
    if option in OTHER_NAMES or option in WITHOUT_OPTION:
        return OTHER_NAMES.get(option)

    def similarity(name: str) -> float:
        """Similarity from 0 to 1. Most of it comes from the option's own name, a little from its section."""
        other_section, _, other = name.rpartition(".")
        of_option = SequenceMatcher(None, option, other).ratio()
        return 0.8 * of_option + 0.2 * SequenceMatcher(None, section, other_section).ratio()

    near = max(names, key=similarity)
    return near if similarity(near) >= SIMILAR else None
