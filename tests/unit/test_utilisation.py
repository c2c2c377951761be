"""The peak that utilisation is a share of, and the operations it counts."""

import torch

from hb_ssl.utilisation import count_flops, matmul_tflops


def test_operations_of_a_product_are_counted_forward_and_backward() -> None:
    x = torch.randn(3, 5)
    weight = torch.randn(5, 7, requires_grad=True)
    assert count_flops(lambda: x @ weight) == 2 * 3 * 5 * 7
    assert count_flops(lambda: (x @ weight).sum().backward()) == 2 * 2 * 3 * 5 * 7


def test_the_peak_is_measured_without_touching_the_random_numbers() -> None:
    before = torch.get_rng_state()
    for precision in ("no", "bf16"):
        # from a slow shared core (1 GFLOP/s) to the largest server
        assert 1e-3 < matmul_tflops("cpu", precision, seconds=0.01) < 1e3
    assert torch.equal(torch.get_rng_state(), before)
