"""result.json and the last line of a run promise an accuracy only for the recipe that it was reached with."""

from fastft.recipe import Recipe, load_recipe
from fastft.recipe.training_images import with_train_size
from fastft.train.evaluate import Scores
from fastft.train.progress import Progress, conclusion, summarise


def result_of(recipe: Recipe) -> dict:
    progress = Progress(epoch=1)
    progress.add(0, {"raw": Scores(top1=80.0, top5=95.0, loss=1.0, samples=100)})
    return summarise(progress, recipe)


def test_the_result_names_what_differs_from_the_expected_accuracy() -> None:
    result = result_of(load_recipe("final_b16"))
    assert (result["expected_top1"], result["expectation"]) == (
        85.7,
        "expected 85.7 % top-1 (paper Table 10)",
    )
    assert "expected 85.7 % top-1 (paper Table 10)" in conclusion(result)
    changed = result_of(load_recipe("final_b16", ["--optim.lr=1e-3"]))
    assert (changed["expected_top1"], changed["expectation"]) == (None, "no expectation: differs in optim.lr")
    assert "no expectation: differs in optim.lr" in conclusion(changed)


def test_a_part_of_imagenet_has_no_expected_accuracy() -> None:
    recipe = load_recipe("final_b16")
    assert with_train_size(recipe, 1_281_167) is recipe
    part = result_of(with_train_size(recipe, 100_000))
    assert (part["expected_top1"], part["expectation"]) == (
        None,
        "no expectation: differs in data.train_size",
    )


def test_a_recipe_that_states_nothing_is_not_mentioned() -> None:
    assert "expect" not in conclusion(result_of(load_recipe("demo")))
