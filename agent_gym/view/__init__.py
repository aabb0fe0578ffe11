"""Pages to look at: result files of ``agent-gym eval``, or run folders of the trainers, as one HTML file.

The page holds all that it shows, plotly's script among it, and asks no network: its content security policy forbids
it. Texts of trajectories were written by models; they stand in the page as JSON and are only ever shown as text.
"""

from agent_gym.view.page import render

__all__ = ["render"]
