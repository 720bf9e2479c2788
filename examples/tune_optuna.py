"""Search for the learning rate and its layer decay with Optuna. After a stop, the same command continues.

python examples/tune_optuna.py photos --data.train=train.beton --data.val=val.beton --trials 20 --out runs/tune

Every trial is a run directory in --out. It is evaluated after an eighth and three eighths of the epochs, and pruned if
it is below the median of the trials so far, by the score that its run compares epochs by: top-1, balanced accuracy if
classes have very different sizes, or mAP with several labels per image. Several GPUs or machines can share the trials:
start the command on each of them, with an --out and a --storage that they all reach (mysql://..., postgresql://...;
SQLite only on one machine).
"""

import argparse
import shlex
import shutil
import sys
import warnings
from pathlib import Path

import optuna
from optuna.trial import Trial, TrialState

import fastft
from beton_tools.base.errors import UserError
from fastft.cli.arguments import add_recipe_options
from fastft.jobs.decided import load_decided
from fastft.machine.exits import NonFinite, Preempted
from fastft.run.evaluations import SCORE_NAMES

SHARES = (1 / 8, 3 / 8, 1)  # fractions of the recipe's epochs after which a trial is evaluated
TAKEN = ("lr", "train.run_dir", "out")  # other names for what a trial sets
TRIED = (TrialState.COMPLETE, TrialState.PRUNED)
SECONDS_BETWEEN_SIGNS = 60  # after twice this time without a sign of life, a trial is given to the next process


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--trials", type=int, default=20, help="number of trials, over all processes and starts")
    parser.add_argument("--out", type=Path, default=Path("runs/tune"))
    parser.add_argument("--storage", help="URL of a database (default: SQLite in --out)")
    add_recipe_options(parser, listed=False)
    args = parser.parse_args()
    options = dict(word.removeprefix("--").split("=", 1) for word in args.overrides)  # --section.key=value
    recipe = load_decided(args.recipe, args.overrides)
    own = {"lr": recipe.optim.lr, "layer_decay": recipe.optim.layer_decay}

    def objective(trial: Trial) -> float:
        lr = trial.suggest_float("lr", own["lr"] / 9, own["lr"] * 9, log=True)
        layer_decay = trial.suggest_float("layer_decay", min(0.4, own["layer_decay"]), 1.0)
        folder = args.out / f"lr-{lr:.4g}-decay-{layer_decay:.4g}"
        tried = options | {"optim.lr": lr, "optim.layer_decay": layer_decay, "train.run_dir": str(folder)}
        try:
            for epochs in sorted({max(1, round(share * recipe.epochs)) for share in SHARES}):
                run = fastft.fit(args.recipe, tried | {"schedule.stop_epoch": epochs})
                if run.result.weights is None:
                    raise UserError("there are no validation images to compare trials by. Set --data.val")
                figures = run.result.weights.figures
                score = next(name for name in SCORE_NAMES if name in figures)  # as the run compares its epochs
                trial.report(figures[score], epochs)
                if epochs < recipe.epochs and trial.should_prune():
                    raise optuna.TrialPruned
        except (NonFinite, optuna.TrialPruned) as error:  # too large a learning rate, or below the median
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            raise optuna.TrialPruned(str(error)) from None
        except (Preempted, KeyboardInterrupt):  # the next start continues its run directory
            study.enqueue_trial(trial.params)
            raise
        study.set_user_attr("score", SCORE_NAMES[score])
        return figures[score]

    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # heartbeats are experimental
    args.out.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=optuna.storages.RDBStorage(
            args.storage or f"sqlite:///{args.out}/study.db",
            heartbeat_interval=SECONDS_BETWEEN_SIGNS,
            heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(),
        ),
        study_name=args.out.name,
        sampler=optuna.samplers.TPESampler(multivariate=True, constant_liar=True),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4),
        direction="maximize",
        load_if_exists=True,
    )
    study.enqueue_trial(own, skip_if_exists=True)
    left = args.trials - len(study.get_trials(states=TRIED))
    enough = optuna.study.MaxTrialsCallback(args.trials, TRIED)
    study.optimize(objective, n_trials=max(0, left), callbacks=[enough])
    if not study.best_trials:
        raise UserError(f"all trials diverged. Give a lower --optim.lr than {own['lr']:g} and another --out")
    found = {f"optim.{name}": value for name, value in study.best_params.items()}
    own = [word for word in args.overrides if word.removeprefix("--").split("=", 1)[0] not in (*found, *TAKEN)]
    command = shlex.join(
        ["fastft", "train", args.recipe, *own, *(f"--{name}={value}" for name, value in found.items())]
    )
    score = study.user_attrs.get("score", "top-1")
    print(f"{score} {study.best_value:.2f} % on the validation images, which also chose the options: {command}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"tune_optuna.py: {error}")
