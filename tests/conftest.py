"""Settings of all tests."""

from hypothesis import HealthCheck, settings

# a busy machine is no fault of the code
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
