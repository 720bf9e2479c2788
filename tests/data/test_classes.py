"""A label is a number: what it means must be the same in a model and a file."""

import pytest

from beton_tools.base.errors import UserError
from beton_tools.read.class_list import Classes
from fastft.data.classes import refuse_other_classes

NUMBERS = [str(k) for k in range(12)]  # in another order than their names
CRANES = Classes.of(["ant", "crane", "crane"], ["n1", "n2", "n3"])
MOVED = Classes.of(["ant", "crane", "crane"], ["n1", "n3", "n2"])
NO_NAMES = "has no class names, so its labels are taken as the class numbers in"


def classes(given: list[str] | int | Classes) -> Classes:
    if isinstance(given, Classes):
        return given
    return Classes.unnamed(given) if isinstance(given, int) else Classes.of(given)


@pytest.mark.parametrize(
    ("found", "expected", "note"),
    [
        (["cat", "dog"], ["cat", "dog"], ""),
        (2, ["cat", "dog"], f"val.beton {NO_NAMES} the model"),  # no manifest
        (["cat", "dog"], 2, f"the model {NO_NAMES} val.beton"),  # trained on a file without a manifest
        (["0", "1"], ["cat", "dog"], f"val.beton {NO_NAMES} the model"),  # from shards that hold numbers
        (3, 3, ""),
        (NUMBERS[:3], NUMBERS, ""),  # each label is its own name
        (CRANES, CRANES, ""),
        (CRANES, ["ant", "crane", "crane"], ""),  # a model of an earlier version, which has no ids
        (CRANES, list(CRANES.labels), ""),
        (Classes.of(["n1", "n2", "n3"], ["n1", "n2", "n3"]), CRANES, ""),  # readable names were not known
        (Classes.of(["n1", "n2", "n3"]), CRANES, ""),
        (Classes.of(["Ant", "Crane", "Bird"], ["n1", "n2", "n3"]), CRANES, ""),  # other words for the same ids
    ],
)
def test_the_same_classes_and_made_up_ones_are_taken(found, expected, note):
    assert refuse_other_classes(classes(found), classes(expected), "val.beton") == note


@pytest.mark.parametrize(
    ("found", "expected", "message"),
    [
        (["cat", "dog"], ["ant", "cat", "dog"], "class 0 is cat, but in the model it is ant"),
        (["cat"], ["cat", "dog"], "class 1 is missing, but in the model it is dog"),
        (["cat", "dog", "eel"], ["cat", "dog"], "has 3 classes, but the model has 2"),
        (3, ["cat", "dog"], "has 3 classes, but the model has 2"),
        (sorted(NUMBERS), NUMBERS, "class 2 is 10, but in the model it is 2"),
        (NUMBERS, sorted(NUMBERS), "class 2 is 2, but in the model it is 10"),
        (["0", "1", "10"], NUMBERS, "class 2 is 10, but in the model it is 2"),
        (1, ["cat", "dog"], "has labels for 1 classes, but the model has 2"),
        (2, 4, "has labels for 2 classes, but the model has 4"),
        (["0", "1"], ["cat", "dog", "eel"], "has labels for 2 classes, but the model has 3"),
        (MOVED, CRANES, r"class 1 is crane \(n3\), but in the model it is crane \(n2\)"),
        (MOVED, list(CRANES.labels), r"class 1 is crane \(n3\), but in the model it is crane \(n2\)"),
        (["crane", "ant", "crane"], ["ant", "crane", "crane"], "class 0 is crane, but in the model it is ant"),
    ],
)
def test_the_first_class_that_differs_is_named_and_the_user_may_overrule(found, expected, message):
    found, expected = classes(found), classes(expected)
    with pytest.raises(UserError, match=f"val.beton.*{message}"):
        refuse_other_classes(found, expected, "val.beton")
    if len(found) <= len(expected):
        said = refuse_other_classes(found, expected, "val.beton", by_position=True)
        assert said.endswith("because of classes_by_position") or said == ""


def test_a_model_may_have_more_outputs_than_classes():
    two, three = Classes.of(["cat", "dog"]), Classes.of(["cat", "dog", "eel"])
    assert refuse_other_classes(three, two, "val.beton", outputs=10) == ""
    with pytest.raises(UserError, match="has 3 classes, but the model has 2"):
        refuse_other_classes(three, two, "val.beton", outputs=2)


def test_rows_are_found_by_id_then_by_name_and_never_by_a_name_of_several_classes():
    assert MOVED.rows_in(CRANES) == [0, 2, 1]
    assert Classes.of(["crane", "bee", "crane"]).rows_in(CRANES) == [None, None, None]
    assert Classes.of(["crane", "crane", "ant"]).rows_in(CRANES) == [None, None, 0]
    assert Classes.of(["crane (n3)", "n2", "ant"]).rows_in(CRANES) == [2, 1, 0]
    twice = Classes.of(
        ["missile", "cat", "missile"], ["missile", "cat", "missile"]
    )  # as a list beside shards may name them
    assert twice.rows_in(twice) == [0, 1, 2]
    assert Classes.of(["cat", "missile"], ["cat", "missile"]).rows_in(twice) == [1, None]
    assert CRANES.labels == ("ant", "crane (n2)", "crane (n3)")
