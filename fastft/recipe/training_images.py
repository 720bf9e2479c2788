"""The images that a recipe is for: how many images and classes, and the accuracy that is expected on ImageNet."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from beton_tools.base.errors import UserError
from fastft.recipe.constants import IMAGE_SIZE, IMAGENET_TRAIN_SIZE, PROBED_SIZES
from fastft.recipe.load import without_expectation
from fastft.recipe.schema import AskedRecipe, Choice, Recipe

if TYPE_CHECKING:
    from beton_tools.read.beton_set import BetonSet

CLASSES = 1000
VAL_IMAGES = 50_000  # ILSVRC2012 validation
NO_EXPECTATION = "no expectation"
NUM_CLASSES, MULTI_LABEL, BACKGROUND = "data.num_classes", "data.multi_label", "data.background"
GIVE = "Give a folder with one folder per class, a CSV or parquet table, or a .beton"  # ends messages about wrong paths
NO_DATA = "no training data. Set --data.train to a .beton file, a folder with a folder per class, or a table"


def is_imagenet(recipe: Recipe) -> bool:
    """True if the recipe has ImageNet's numbers of classes and training images."""
    return (recipe.data.num_classes, recipe.data.train_size) == (CLASSES, IMAGENET_TRAIN_SIZE)


def expected_top1(recipe: Recipe) -> float | None:
    """Return the recipe's expected accuracy. None if it has none, or if its data are not ImageNet."""
    return recipe.about.top1 if is_imagenet(recipe) else None


def describe_expectation(recipe: Recipe) -> str:
    """Return the expected accuracy with its source, or why there is none."""
    if recipe.about.top1 is None:
        return recipe.about.source or NO_EXPECTATION
    if not is_imagenet(recipe):  # the training file does not have as many images as the recipe says
        return f"{NO_EXPECTATION}: differs in data.train_size"
    return f"expected {recipe.about.top1:g} % top-1 ({recipe.about.source})"


def assumed_val_images(recipe: Recipe) -> int:
    """Return how many validation images are assumed: ImageNet's 50,000, or for other data the same fraction."""
    return round(recipe.data.train_size * VAL_IMAGES / IMAGENET_TRAIN_SIZE)


# the recipe for its images


@dataclass(frozen=True)
class Images:
    """The images that a recipe's data has.

    Attributes:
        title: names the training images in messages.
        train, val: how many are trained and validated on. Images that `data.selection_share` reserves count as `train`.
        classes: how many classes the training images have.
        is_named: the classes have names. Otherwise there may be more classes than the labels show.
        multi_label: an image may have several labels.
        reading: how the labels were read, if that is not obvious. See `beton_tools.sources.Source`.
        background: the colour that .beton files have under transparent pixels. None if they are known to have none.
    """

    title: str
    train: int
    val: int
    classes: int
    is_named: bool = True
    multi_label: bool = False
    reading: str = ""
    background: str | None = None

    @classmethod
    def of_betons(cls, train: "BetonSet", val: "BetonSet | None") -> "Images":
        """Describe the images in .beton files."""
        classes, is_named = len(train.class_names), train.has_class_names
        multi_label = train.label_sets is not None
        count = 0 if val is None else len(val)
        return cls(train.title, len(train), count, classes, is_named, multi_label, background=train.background)


def with_images(recipe: AskedRecipe, images: Images) -> AskedRecipe:
    """Return the recipe for these images.

    This sets how many are trained on, their classes, and whether an image may have several labels. If the number of
    images or classes differs from the recipe's, its expected accuracy no longer applies.

    Raises:
        UserError: the command line contradicts the images, or they have fewer than 2 classes.
    """
    recipe = _with_background(_with_multi_label(recipe, images), images)
    if images.is_named or recipe.data.multi_label or NUM_CLASSES in recipe.automatic:
        recipe = with_num_classes(recipe, images.classes, images.title)
    trained = images.train - recipe.selection_images(images.train)
    if trained == recipe.data.train_size:
        return recipe
    recipe = recipe.with_option("data.train_size", trained)
    return recipe if recipe.about.top1 is None else without_expectation(recipe, ["data.train_size"])


def largest_size(recipe: AskedRecipe) -> int:
    """Return the image size that photographs are stored for: the recipe's, or the largest that may be chosen."""
    return PROBED_SIZES[-1] if IMAGE_SIZE in recipe.automatic else recipe.evaluated_size


def _with_multi_label(recipe: AskedRecipe, images: Images) -> AskedRecipe:
    if images.multi_label == recipe.data.multi_label:
        return recipe
    if not images.multi_label or MULTI_LABEL in recipe.given:
        labels, stated = ("several labels", "false") if images.multi_label else ("one label", "true")
        raise UserError(f"{images.title} has {labels} per image, but --{MULTI_LABEL} is {stated}. Leave the option out")
    reason = f"images in {images.title} have several labels, so each class has a sigmoid instead of a softmax"
    if images.reading:
        reason = f"{images.title}: {images.reading} (false reads each as one class name)"
    return _first(recipe, Choice(MULTI_LABEL, True, reason))


def _with_background(recipe: AskedRecipe, images: Images) -> AskedRecipe:
    """Return the recipe with the colour that the files have under transparent pixels, because predictions need it too."""
    if images.background is None or images.background == recipe.data.background:
        return recipe
    if BACKGROUND in recipe.given:
        raise UserError(
            f"{images.title} was converted with --background {images.background}, but --{BACKGROUND} is "
            f"{recipe.data.background}. Leave the option out, or convert the images again"
        )
    return _first(recipe, Choice(BACKGROUND, images.background, f"as {images.title} was converted"))


def with_num_classes(recipe: AskedRecipe, count: int, title: object) -> AskedRecipe:
    """Return the recipe for `count` classes.

    Raises:
        UserError: there are fewer than 2, or the command line says otherwise.
    """
    if count < 2:
        raise UserError(f"{title} has {count} class, but training needs at least 2")
    stated = recipe.data.num_classes
    if NUM_CLASSES in recipe.automatic:
        return _first(recipe, Choice(NUM_CLASSES, count, f"number of classes in {title}"))
    if stated == count:
        return recipe
    if NUM_CLASSES in recipe.given:
        raise UserError(f"{title} has {count} classes, but --data.num_classes is {stated}. Leave the option out")
    recipe = recipe.with_option(NUM_CLASSES, count)
    return recipe if recipe.about.top1 is None else without_expectation(recipe, [NUM_CLASSES])


def _first(recipe: AskedRecipe, choice: Choice) -> AskedRecipe:
    """Return the recipe with this choice, listed before the others."""
    others = (other for other in recipe.choices if other.option != choice.option)
    return replace(recipe.with_option(choice.option, choice.value), choices=(choice, *others))
