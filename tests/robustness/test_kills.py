"""Ten kills at random moments; `python -m tests.robustness.kills` does more."""

import os

from tests.warm import run_warm


def test_killed_runs_resume_to_the_same_result() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = run_warm("-m", "tests.robustness.kills", "--kills", "10", environment=environment)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10 kills" in done.stdout
    assert "0 faults" in done.stdout
