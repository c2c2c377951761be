"""How much of a device a model uses: the peak that a plain matrix product reaches, and FLOPs."""

import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

PRECISIONS = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def matmul_tflops(
    device: torch.device | str, mixed_precision: str = "no", seconds: float = 1.0
) -> float:
    """Peak of a device in 10^12 floating-point operations a second, measured with square products.

    What this process can reach: on a CPU with its own number of threads, beside whatever else runs.

    Args:
        device: where to multiply.
        mixed_precision: ``no`` (float32), ``bf16`` or ``fp16``.
        seconds: how long to measure.
    """
    device = torch.device(device)
    size = 1024 if device.type == "cpu" else 8192
    source = torch.Generator().manual_seed(0)  # the program's own random numbers stay untouched
    a, b = (
        torch.rand(size, size, generator=source).to(device, PRECISIONS[mixed_precision])
        for _ in "ab"
    )

    def multiply() -> float:
        started = time.perf_counter()
        torch.mm(a, b)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return time.perf_counter() - started

    multiply()  # loads and chooses the kernel
    fastest, end = multiply(), time.perf_counter() + seconds
    while time.perf_counter() < end:
        fastest = min(fastest, multiply())
    return 2 * size**3 / fastest / 1e12


def count_flops(step: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions that ``step()`` runs."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()
