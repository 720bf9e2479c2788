"""What README.md and docs/ promise with "warns", "refuses", "always", "never" or "at most" has a test that is named here."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# docs/measurements/ says what was seen, not what is promised
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WORDS = re.compile(r"\b(warns?|refuses?|refused|always|never|at most)\b", re.IGNORECASE)

# page -> {a part of the sentence: the test that fails if the promise is broken}
PROMISES: dict[str, dict[str, str]] = {
    "bench-schema.md": {"refuses a file that has one": "machine/test_bench_result.py::a_share_above_100_percent_is_refused"},
    "benchmarks.md": {
        "The page warns about measures": "bench/test_page.py::load_that_begins_after_the_start_is_told_with_the_measure",
    },
    "clip.md": {"refuses them before it reads any data": "evaluate/test_zero_shot.py::bad_input_is_one_line"},
    "cloud.md": {
        "never stores the archives": "beton_tools/sources/test_remote.py::a_conversion_equals_that_of_local_files",
        "Folders of single images are refused":
            "beton_tools/sources/test_remote_s3.py::what_cannot_be_converted_is_one_line_and_code_2",
        "the conversion is refused": "beton_tools/sources/test_remote.py::a_file_that_changes_during_the_conversion_is_refused",
    },
    "deploy.md": {
        "refuses a tower that a format cannot represent":
            "export/test_export.py::relative_position_bias_is_refused_by_formats_without_it",
    },
    "determinism.md": {
        "compares contents, never paths": "jobs/test_sameness.py::a_run_that_was_moved_is_evaluated_on_its_own_images",
        "an image, a label, a class": "jobs/test_sameness.py::what_changes_the_numbers_is_trained_anew_or_refused",
        "`schedule.stop_epoch`, `train.stop_when`":
            "jobs/test_sameness.py::what_is_evaluated_otherwise_continues_but_is_no_row_that_is_there",
        "refuse images that have changed":
            "jobs/test_sameness.py::validation_images_that_were_replaced_are_not_scored_as_the_runs",
        "refuses runs that normalise": "jobs/test_sameness.py::runs_that_see_images_differently_are_not_averaged",
    },
    "distributed.md": {
        "fastft's launcher warns about it": "train/test_distributed.py::the_launcher_warns_of_restarts",
        "They wait for it for at most":
            "train/test_distributed.py::processes_wait_for_the_choice_of_a_step_as_long_as_for_anything_else",
        "at most 20 times": "train/test_slurm.py::a_job_is_requeued_at_most_twenty_times",
    },
    "faq.md": {
        "[refuses a wrong pair]": "model/test_weight_folders.py::explain_and_cost_refuse_weights_of_the_other_gelu",
        "at most a quarter of the paper's":
            "optim/test_schedule.py::the_papers_rate_with_a_small_batch_is_one_warning_with_the_rate_that_fits",
        "The EMA decay is always converted": "optim/test_groups.py::ema_decay_keeps_its_horizon_in_images",
        "If you upgrade": "jobs/test_sameness.py::a_run_of_an_older_fastft_continues_and_is_compared_by_what_it_stored",
    },
    "file-format.md": {
        "file that Pillow refuses": "beton_tools/write/test_writer.py::an_image_that_kills_workers_is_a_bad_image",
        "Parts of different conversions": "data/test_what_is_trained.py::parts_are_the_whole_or_are_refused",
        "never by position": "data/test_classes.py::rows_are_found_by_id_then_by_name_and_never_by_a_name_of_several_classes",
        "It is refused if it has fewer labels":
            "data/test_what_is_trained.py::a_file_without_a_manifest_is_used_alone_and_never_by_chance_beside_named_ones",
        "It is refused as one of several training files":
            "data/test_what_is_trained.py::a_file_without_a_manifest_is_used_alone_and_never_by_chance_beside_named_ones",
        "the subset is refused": "beton_tools/read/test_subset_file.py::a_changed_file_is_refused",
    },
    "gpu-day.md": {
        "never wait for the device": "gpu/test_step.py::steps_do_not_wait_for_the_device",
        "A call takes at most ten minutes": "gpu/test_borrowed.py::every_result_is_on_disk_before_the_next_begins",
        "take 45 minutes at most": "gpu/test_borrowed.py::the_calls_of_a_day_take_45_minutes_by_their_own_limits",
        "at most 150 seconds": "gpu/test_borrowed.py::a_step_is_measured_in_a_process_that_ends_with_its_time",
        "nothing in it is refused": "fake_gpu/test_steps.py::a_captured_step_is_one_graph_and_its_update",
    },
    "imagenet.md": {
        "the command refuses and lists":
            "train/test_loop.py::a_changed_recipe_is_refused_with_the_keys_that_differ_but_weights_may_move",
    },
    "large-data.md": {
        "using them together is refused": "data/test_what_is_trained.py::parts_are_the_whole_or_are_refused",
        "in segments with at most 8 million": "data/test_order.py::an_order_in_segments_is_one_sort_of_all_samples",
    },
    "models.md": {
        "A model is refused if it has BatchNorm": "model/test_timm_towers.py::what_a_model_lacks_is_refused_in_one_line",
        "A wrong pair is refused": "model/test_weight_folders.py::what_does_not_fit_is_one_line_that_says_what_does",
        "Weights for another model are refused": "model/test_weights.py::weights_of_another_architecture_are_refused",
        "are refused as starting weights": "export/test_read_back.py::files_for_deployment_are_refused_with_what_to_give",
    },
    "options.md": {
        "(refused on ImageNet)": "train/test_stop_when.py::it_is_refused_where_only_reported_images_or_none_are_there",
        "The last epoch is always evaluated":
            "train/test_checkpointing.py::the_last_epoch_is_evaluated_and_the_last_and_the_best_are_saved_whatever_the_intervals",
        "The last and the best epoch are always saved":
            "train/test_checkpointing.py::the_last_epoch_is_evaluated_and_the_last_and_the_best_are_saved_whatever_the_intervals",
        "`beton sheet` | at most N samples": "beton_tools/test_cli.py::sheet_shows_the_images",
        "`beton extract` | at most N samples": "beton_tools/test_cli.py::extract_writes_the_stored_bytes",
    },
    "photos-settings.md": {
        "always wins": "choose/test_automatic.py::the_users_own_value_wins",
        "at most the paper's value": "choose/test_automatic.py::the_values_for_a_number_of_images_are_those_of_the_table",
        "are always evaluated at the size":
            "evaluate/test_evaluated_size.py::a_size_at_which_a_tower_cannot_be_evaluated_is_refused",
        "at most a tenth of the time left": "choose/test_budget.py::a_probe_may_take_a_tenth_of_what_is_left",
        "at most the number that is chosen without a budget":
            "choose/test_budget.py::time_is_given_to_the_image_size_as_long_as_there_are_enough_steps",
        "raw weights always come from the last epoch": "run/test_chosen_weights.py::weights_can_be_chosen",
    },
    "photos.md": {
        "and `--votes` refuses them": "evaluate/test_votes.py::heads_whose_logits_are_no_mean_over_patches_are_refused",
        "`test/` is never used": "photos/test_layout.py::images_in_a_folder_test_are_used_for_nothing",
        "After its first checkpoint": "photos/test_prepare.py::photographs_are_converted_once_and_again_when_they_change",
    },
    "recipes.md": {
        "It may have at most 128 KB": "recipe/test_recipe_file.py::the_limits_of_a_recipe_are_those_of_the_page",
        "On ImageNet this is refused": "train/test_stop_when.py::it_is_refused_where_only_reported_images_or_none_are_there",
        "The log warns you": "train/test_loop.py::an_ema_of_mostly_initial_weights_is_a_warning_in_the_log",
    },
    "reports.md": {
        "warns if the file has images": "evaluate/test_evaluation.py::images_that_the_model_was_trained_on_are_counted",
    },
    "reliability.md": {
        "the second is refused in one line": "beton_tools/write/test_interruption.py::two_writers_of_one_file_do_not_mix",
        "refused without `--overwrite`": "export/test_export.py::files_of_the_user_are_replaced_only_if_asked",
        "never with SIGBUS": "data/test_changed_file.py::a_truncated_file_is_an_error_that_names_it",
        "that another user could have written never runs":
            "beton_tools/base/test_jit_cache.py::a_file_of_another_user_is_not_run_and_is_one_line",
        "of an earlier version never runs": "beton_tools/base/test_jit_cache.py::an_edit_in_a_called_file_recompiles_its_callers",
        "in the cache of compiled code is never run":
            "beton_tools/base/test_jit_cache.py::a_damaged_file_of_the_cache_counts_as_missing",
    },
    "step.md": {
        "at most 64 images": "train/test_step_choice.py::candidates_depend_on_the_card",
        "`off` never does so": "machine/test_precision.py::v100_trains_a_half_precision_copy_in_fp16",
    },
    "when-not.md": {
        "refuses a model that cannot fit":
            "train/test_micro_batch.py::a_model_whose_state_exceeds_the_gpu_is_refused_before_its_weights_are_fetched",
    },
}  # fmt: skip
# page -> {a part of a sentence with such a word: why it promises nothing}
NO_PROMISES = {
    "README.md": {"| always the largest class |": "a row of a table of measurements"},
    "benchmarks.md": {"A peer is not always behind": "a measurement", "Load before a session at most": "a measurement"},
    "large-data.md": {"images from at most 128 classes": "arithmetic: a page from one class, 128 pages"},
    "photos.md": {"Some classes are never predicted": "what a user sees"},
    "reports.md": {
        "--mistakes=always": "an argument's values",
        "if: always()": "GitHub's own syntax",
        "`ok`, `warn` or `fail`": "what the command prints",
    },
}


def sentences(page: Path) -> Iterator[str]:
    """Sentences, list items and table rows that have one of the words, each on one line."""
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*#]|\d+\.)\s|\||```)", page.read_text(encoding="utf-8")):
        for sentence in re.split(r"(?<=[.?!])\s+(?=[A-Z`*\[])", " ".join(block.split())):
            if WORDS.search(sentence):
                yield sentence


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_promise_of_a_page_is_listed_and_every_entry_is_on_the_page(page):
    found, listed = list(sentences(page)), {**PROMISES.get(page.name, {}), **NO_PROMISES.get(page.name, {})}
    assert [sentence for sentence in found if not any(part in sentence for part in listed)] == [], "name the test"
    assert [part for part in listed if not any(part in sentence for sentence in found)] == [], "no such sentence"


def test_every_promise_names_a_test_that_exists():
    assert {*PROMISES, *NO_PROMISES} <= {page.name for page in PAGES}
    for named in {test for parts in PROMISES.values() for test in parts.values()}:
        file, _, name = named.partition("::")
        tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
        assert f"test_{name}" in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, named
