"""The processes of one run, on CPU or GPU, however they were started."""

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env


def on_cpu() -> bool:
    """True where there is no GPU, or ``ACCELERATE_USE_CPU=true`` asks not to use it."""
    return parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()


def processes() -> PartialState:
    """Joins the other processes of the run (torchrun, ``accelerate launch``); one by default.

    ``PartialState()`` alone would not: without ``cpu=True`` it takes every CPU process for a run
    of its own, whatever the environment says.
    """
    return PartialState(cpu=on_cpu())
