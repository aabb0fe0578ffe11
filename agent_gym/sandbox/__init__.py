"""Where model-written code runs: Docker, bubblewrap or a bare process behind one call, ``check``.

The grader stays in this process and alone knows the expected values. The program gets one input at a time in a fresh
process of a sandbox and returns plain data; nothing it can send means "pass".
"""

from agent_gym.sandbox.backends import Limits, SandboxUnavailable
from agent_gym.sandbox.grader import Asserts, Cases, Raises, Scripts, Suite, Test, same
from agent_gym.sandbox.pool import Pool, check, shared_pool

__all__ = ["Asserts", "Cases", "Limits", "Pool", "Raises", "SandboxUnavailable", "Scripts", "Suite", "Test", "check",
           "same", "shared_pool"]  # fmt: skip
