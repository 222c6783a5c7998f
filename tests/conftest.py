import jaxtyping
import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
settings.register_profile(
    "small",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=8,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("small")


SLOW = (
    "tests/backbones/test_catalogue.py",
    "tests/backbones/test_families.py",
    "tests/backbones/test_size_search.py",
    "tests/backbones/test_weights.py",
    "tests/cache/test_cloud.py",
    "tests/contracts/",
    "tests/extension/",
    "tests/integration/",
    "tests/interop/",
    "tests/metrics/test_networks.py",
    "tests/objectives/test_perceptual.py",
    "tests/robustness/test_checkpoints.py",
    "tests/robustness/test_damage.py",
    "tests/robustness/test_kills.py",
    "tests/robustness/test_own_parts.py",
    "tests/robustness/test_run_folders.py",
    "tests/test_diffusers_view.py",
    "tests/test_docs.py",
    "tests/training/test_caching.py",
    "tests/training/test_comparison.py",
    "tests/training/test_latent_sizes.py",
    "tests/training/test_loggers.py",
    "tests/training/test_recipes.py",
)
"""Files whose tests run real processes, whole trainings, or other libraries' networks."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what `make test-quick` leaves out."""
    for item in items:
        if (
            item.nodeid.startswith(SLOW)
            or "compile" in item.name
            or "process" in item.name
            or "completion" in item.name
        ):
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def without_shape_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run as users do: without the import hook's checks, which would speak before the library's own."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
