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

    On a CPU it is the peak of this process' threads, by the CPU time that they use: other programs
    on the machine must not lower it.

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

    def clock() -> float:
        if device.type == "cpu":
            return time.process_time() / torch.get_num_threads()
        torch.accelerator.synchronize(device)
        return time.perf_counter()

    def multiply() -> float:
        started = clock()
        torch.mm(a, b)
        return clock() - started

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
