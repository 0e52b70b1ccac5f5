"""Reinforcement learning: the loops, engines, actors, evaluation and analysis."""

import logging

# peft imports bitsandbytes where it is installed, which on a CPU warns every process of a kernel that only inference wants.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
