"""A label is a number: what it means must be the same in a model and a file."""

import pytest

from beton_tools.base.errors import UserError
from fastft.data.classes import name_outputs, refuse_other_classes

MADE_UP = ["class 0", "class 1", "class 2"]
NUMBERS = [str(k) for k in range(12)]  # in another order than their names


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (["cat", "dog"], ["cat", "dog"]),
        (["class 0"], ["cat", "dog"]),  # no manifest, and the file uses one label only
        (["cat", "dog"], MADE_UP),  # trained on a file without a manifest
        (["0", "1"], ["cat", "dog"]),  # from shards that hold numbers
        (NUMBERS[:3], NUMBERS),
        (["cat", "dog"], name_outputs(["cat", "dog"], 10)),  # a head with more outputs than classes
    ],
)
def test_the_same_classes_and_made_up_ones_are_taken(found, expected):
    refuse_other_classes(found, expected, "val.beton")


@pytest.mark.parametrize(
    ("found", "expected", "message"),
    [
        (["cat", "dog"], ["ant", "cat", "dog"], "class 0 is cat, but in the model it is ant"),
        (["cat"], ["cat", "dog"], "class 1 is missing, but in the model it is dog"),
        (["cat", "dog", "eel"], ["cat", "dog"], "has 3 classes, but the model has 2"),
        (MADE_UP, ["cat", "dog"], "has 3 classes, but the model has 2"),
        (sorted(NUMBERS), NUMBERS, "class 2 is 10, but in the model it is 2"),
        (NUMBERS, sorted(NUMBERS), "class 2 is 2, but in the model it is 10"),
        (["0", "1", "10"], NUMBERS, "class 2 is 10, but in the model it is 2"),
    ],
)
def test_the_first_class_that_differs_is_named(found, expected, message):
    with pytest.raises(UserError, match=f"val.beton.*{message}"):
        refuse_other_classes(found, expected, "val.beton")
