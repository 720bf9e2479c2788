"""The Slurm script of training, run by bash with stubs of Slurm's commands."""

import os
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "rcp/slurm/train.sbatch"


def run_script(folder: Path, srun: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The script with these commands of Slurm; srun: what it does."""
    scontrol = '[ "$1" = show ] && echo n1 || echo "$*"'
    for name, body in (("srun", srun), ("scontrol", scontrol)):
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    slurm = {
        "SLURM_SUBMIT_DIR": "/nowhere",
        "SLURM_JOB_ID": "7",
        "SLURM_CPUS_PER_TASK": "64",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
    }
    return subprocess.run(
        ["bash", str(SCRIPT), "final_b16"], env=os.environ | slurm | environment, capture_output=True, text=True
    )


def test_each_node_gets_the_cpus_of_the_job_and_a_saved_run_is_requeued(tmp_path):
    """srun takes SRUN_CPUS_PER_TASK, not the job's --cpus-per-task, for the processes that it starts."""
    done = run_script(tmp_path, 'echo "$SRUN_CPUS_PER_TASK cpus at $MASTER_ADDR:$MASTER_PORT"; exit 75')
    assert done.returncode == 75, done.stderr
    assert done.stdout == "64 cpus at n1:20007\nrequeue 7\n"


def test_a_job_is_requeued_at_most_twenty_times(tmp_path):
    for restarts, requeued in (("19", "requeue 7\n"), ("20", "")):
        done = run_script(tmp_path, "exit 75", SLURM_RESTART_COUNT=restarts)
        assert (done.returncode, done.stdout) == (75, requeued)


def test_files_are_staged_once_and_training_needs_all_of_them(tmp_path):
    """A file that is there is not copied again, one that has changed since is; a disk that is full ends the job."""
    source, target = tmp_path / "shared", tmp_path / "local"
    (source / "more").mkdir(parents=True)
    for name in ("train.beton", "val.beton"):
        (source / name).write_text(name)
    # the staging is run, the training is not
    srun = 'case "$*" in *STAGE_TO*) exec "$@";; *) echo trains;; esac'
    staged = {"STAGE_FROM": str(source), "STAGE_TO": str(target)}
    assert run_script(tmp_path, srun, **staged).stdout == "trains\n"
    assert {path.name: path.read_text() for path in target.iterdir()} == {n: n for n in ("train.beton", "val.beton")}
    later = (target / "train.beton").stat().st_mtime + 10
    (target / "train.beton").write_text("the copy")
    os.utime(target / "train.beton", (later, later))
    (source / "val.beton").write_text("changed")
    os.utime(source / "val.beton", (later, later))
    assert run_script(tmp_path, srun, **staged).returncode == 0
    assert (target / "train.beton").read_text() == "the copy" and (target / "val.beton").read_text() == "changed"
    full = run_script(tmp_path, srun, STAGE_FROM=str(source), STAGE_TO="/proc/full")
    assert full.returncode == 1 and "trains" not in full.stdout
    assert run_script(tmp_path, srun).stdout == "trains\n"
