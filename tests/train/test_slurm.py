"""The Slurm script of training, run by bash with stubs of Slurm's commands."""

import os
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "rcp/slurm/train.sbatch"


def test_each_node_gets_the_cpus_of_the_job_and_a_saved_run_is_requeued(tmp_path):
    """srun takes SRUN_CPUS_PER_TASK, not the job's --cpus-per-task, for the processes that it starts."""
    srun = 'echo "$SRUN_CPUS_PER_TASK cpus at $MASTER_ADDR:$MASTER_PORT"; exit 75'
    scontrol = '[ "$1" = show ] && echo n1 || echo "$*"'
    for name, body in (("srun", srun), ("scontrol", scontrol)):
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {
        "SLURM_SUBMIT_DIR": "/nowhere",
        "SLURM_JOB_ID": "7",
        "SLURM_CPUS_PER_TASK": "64",
        "SLURM_JOB_NODELIST": "n[1-2]",
    }
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", str(SCRIPT), "final_b16"], env=os.environ | slurm | {"PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 75, done.stderr
    assert done.stdout == "64 cpus at n1:20007\nrequeue 7\n"
