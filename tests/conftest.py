"""Settings of all tests."""

import sys

import pytest
from hypothesis import HealthCheck, settings

# a busy machine is no fault of the code
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(scope="module")
def one_thread():
    """Sums of floats depend on the number of threads, and models and runs are compared digit by digit."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def no_browser_is_left():
    """Playwright leaves an event loop running in its thread, beside which those of other libraries will not run."""
    yield
    chromium = sys.modules.get("agent_gym.envs.web_lite.chromium")
    if chromium is not None:
        chromium.quit_browser()
