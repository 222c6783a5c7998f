"""Ten kills at random moments; `python -m tests.robustness.kills` does more."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_killed_runs_resume_to_the_same_result() -> None:
    command = [sys.executable, "-m", "tests.robustness.kills", "--kills", "10"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10 kills" in done.stdout
    assert "0 faults" in done.stdout
