"""``python -m agent_gym``: the command ``agent-gym``."""

import sys

from agent_gym.cli import main

sys.exit(main())
