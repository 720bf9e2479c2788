"""The frontier: combinations of levers, with the figures of the logs and the paper where there are any."""

import json

import pytest

from beton_tools.base.errors import UserError
from fastft.cli import main
from fastft.cost.frontier import SET_BY_LEVERS, price_combinations
from fastft.cost.price import predict
from fastft.cost.published import reference_curves
from fastft.recipe import load_recipe

B16 = reference_curves()["final_b16"]["top1_ema"]


@pytest.fixture(scope="module")
def b16() -> dict:
    return price_combinations(load_recipe("frugal_b16"))


def row(values: dict, *levers: str) -> dict:
    (found,) = [r for r in values["combinations"] if r["levers"] == list(levers)]
    return found


@pytest.mark.parametrize(
    ("recipe", "levers"),
    [
        ("frugal_b16", ["stop after epoch 30"]),
        ("quick_b16", ["stop after epoch 23"]),
        ("frugal_b16_half", ["stop after epoch 30", "train the top 6 blocks"]),
    ],
)
def test_recipes_are_combinations_at_their_own_cost_and_expectation(
    b16, recipe: str, levers: list[str]
) -> None:
    found, known = row(b16, *levers), load_recipe(recipe)
    assert found["options"] == {key: known.flat()[key] for key in SET_BY_LEVERS}
    assert found["gpu_hours"] == pytest.approx({g: p["hours"] for g, p in predict(known).items()})
    assert found["expected_top1"] == pytest.approx(known.about.top1, abs=0.06)
    hours = [r["gpu_hours"]["V100"] for r in b16["combinations"]]
    assert hours == sorted(hours) and len(hours) == 2 * 3  # stop, freeze


def test_a_floor_keeps_what_is_shown_to_reach_it_and_stops_as_early_as_it_allows() -> None:
    values = price_combinations(load_recipe("final_b16"), at_least=85.5)
    found = [(r["levers"], round(r["expected_top1"], 3)) for r in values["combinations"]]
    assert found == [
        (["stop after epoch 28", "train the top 6 blocks"], 85.5),
        (["stop after epoch 25"], 85.524),
    ]
    assert B16[26] - 0.1 < 85.5 and B16[23] < 85.5
    assert values["combinations"][0]["sources"] == ["reference log at epoch 27", "paper Figure 3"]


def test_levers_of_the_recipe_itself_do_not_count(b16) -> None:
    half = price_combinations(load_recipe("frugal_b16_half"))
    assert half["combinations"] == b16["combinations"]


def test_another_training_has_costs_but_no_expectation() -> None:
    values = price_combinations(load_recipe("final_b16", ["--optim.lr=1e-4"]))
    assert {r["expected_top1"] for r in values["combinations"]} == {None}
    with pytest.raises(UserError, match="nothing shows that final_b16 can reach 80 % top-1"):
        price_combinations(load_recipe("final_b16", ["--optim.lr=1e-4"]), at_least=80)


def test_what_the_paper_froze_in_b16_only_is_marked_as_assumed_elsewhere() -> None:
    values = price_combinations(load_recipe("final_l14"), at_least=87.8)
    assert any("assumed as for B/16" in source for r in values["combinations"] for source in r["sources"])
    assert row(values, "stop after epoch 17")["expected_top1"] == 87.82


def test_the_command_prints_a_table_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["cost", "--frontier", "frugal_b16", "--at-least", "85.5", "--gpu", "v100"]
    assert main([*command, "--mfu", "52%", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["gpus"] == ["V100"] and values["combinations"][0]["gpu_hours"]["V100"] < 12.2
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "stop after epoch 25" in said and "reference log at epoch 24" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--frontier", "frugal_b16", "--at-least", "86"],
            "nothing shows that frugal_b16 can reach 86 % top-1",
        ),
        (["--frontier", "frugal_b16", "quick_b16"], "--frontier takes one recipe"),
        (["--frontier", "frugal_b16", "--price", "2"], "not --price"),
        (["--frontier", "frugal_b16", "--gpu", "v1000"], "no data are known for GPU"),
        (["frugal_b16"], "give --gpu"),
        (["frugal_b16", "--gpu", "v100", "--at-least", "85"], "--at-least needs --frontier"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cost", *arguments]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said and "\n" not in said
