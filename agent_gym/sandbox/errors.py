"""The ways in which a sandbox is not there."""

from __future__ import annotations

from agent_gym.verdict import InfraError

__all__ = ["Killed", "Lost", "NotInstalled", "SandboxUnavailable", "Starved"]


class Lost(InfraError):
    """The sandbox itself is gone or does not answer: nothing that a submission could say."""


class Killed(Lost):
    """The run was killed, by itself or from outside, e.g. because the whole machine is out of memory: only asking again
    tells the one from the other. Its sandbox is as good as before."""


class SandboxUnavailable(RuntimeError):
    """The sandbox that was asked for cannot be had on this machine."""


class NotInstalled(SandboxUnavailable):
    """It was never set up here: nothing is wrong, and nothing is said where another one does."""


class Starved(Lost):
    """The run could have gone on, but the machine gave it hardly any processor time."""
