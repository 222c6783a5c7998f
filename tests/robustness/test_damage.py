"""A thousand damaged files with a fixed seed; `python -m tests.robustness.damage` runs more."""

from pathlib import Path

import pytest

from tests.robustness.damage import damage_files

CASES = 1000


@pytest.mark.usefixtures("without_shape_checks")
def test_damaged_files_give_what_they_held_or_an_error_of_ours(tmp_path: Path) -> None:
    counts, faults = damage_files(CASES, seed=0, root=tmp_path)
    print(*(f"{target}: {outcome} {count}" for (target, outcome), count in sorted(counts.items())), sep="\n")
    assert not faults, "\n".join(faults)
    assert sum(counts.values()) == CASES
    assert {target for target, outcome in counts if outcome == "refused"} == {target for target, _ in counts}
