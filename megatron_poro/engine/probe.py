"""How fast this rank's device is by itself: a fixed amount of matrix products, with nothing to wait for.

In synchronous training all ranks take equally long for a step, whoever is slow; and on an accelerator the products inside a tensor
group wait for each other. So the device is asked apart from training.
"""

import statistics
import time

import torch

from megatron_poro.engine.platform import Platform


class DeviceProbe:
    """Matrix products of a fixed size: about 1.6 GFLOP on a CPU, about 0.5 TFLOP in bf16 on an accelerator, some 10 ms.

    Another `size` than 0 is for larger products, whose rate comes nearer to what a device can do.
    """

    def __init__(self, platform: Platform, *, size: int = 0) -> None:
        self._is_cpu = platform.is_cpu
        self._device = platform.device
        usual, self._times = (256, 48) if platform.is_cpu else (2048, 32)
        self._size = size or usual
        self._dtype = torch.float32 if platform.is_cpu else torch.bfloat16
        self._seconds: list[float] = []

    @torch.no_grad()
    def measure(self) -> float:
        """Take one measurement; returns its TFLOP/s."""
        left = torch.full((self._size, self._size), 1.0 / self._size, dtype=self._dtype, device=self._device)
        right = left.clone()
        left @ right  # the first product of a size may choose its kernel
        self._seconds.append(self._time_products(left, right))
        return 2 * self._size**3 * self._times / self._seconds[-1] / 1e12

    def take_median(self) -> float:
        """The median of the measurements since the last call, in seconds; 0 when there were none."""
        median = statistics.median(self._seconds) if self._seconds else 0.0
        self._seconds = []
        return median

    def _time_products(self, left: torch.Tensor, right: torch.Tensor) -> float:
        if not self._is_cpu:
            torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(self._times):
            left = left @ right
        if not self._is_cpu:
            torch.cuda.synchronize()
        return time.perf_counter() - started


def measure_tflops(platform: Platform, *, size: int = 0) -> float:
    """What a matrix product (of another `size` than the usual one) reaches on this rank's device, in TFLOP/s, best of three."""
    probe = DeviceProbe(platform, size=size)
    return max(probe.measure() for _ in range(3))


def device_name(platform: Platform) -> str:
    """This rank's device for people: `cpu`, or index and product name."""
    return "cpu" if platform.is_cpu else f"{platform.device} {torch.cuda.get_device_name(platform.device)}"
