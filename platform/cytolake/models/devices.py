"""GPUs and what their makers declare: peak speed, memory bandwidth and memory size."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Device:
    """What a maker declares of one GPU."""

    name: str
    pattern: str
    """Regular expression for the name that torch gives it."""
    peak_tflops: float
    """Dense matrix products of bf16 (V100, T4: fp16), summed in fp32, in 10^12 operations a second."""
    bandwidth_gb_s: float
    """Of its memory, 10^9 bytes a second."""
    memory_gb: float
    """10^9 bytes."""


DEVICES = (
    Device("B200", r"B200", 2250, 8000, 180),
    Device("GH200", r"GH200", 989, 4000, 96),
    Device("H200", r"H200", 989, 4800, 141),
    Device("H100 SXM", r"H100(?!.*(PCIe|NVL))", 989, 3350, 80),
    Device("H100 PCIe", r"H100.*PCIe", 756, 2039, 80),
    Device("H100 NVL", r"H100.*NVL", 835, 3938, 94),
    Device("H20", r"H20", 148, 4000, 96),
    Device("A100", r"A100(?!.*40 ?GB)", 312, 2039, 80),
    Device("A100 40GB", r"A100.*40 ?GB", 312, 1555, 40),
    Device("A40", r"A40", 149.7, 696, 48),
    Device("A30", r"A30", 165, 933, 24),
    Device("A10", r"A10G?", 125, 600, 24),
    Device("L40S", r"L40S", 362, 864, 48),
    Device("L4", r"L4", 121, 300, 24),
    Device("V100", r"V100", 125, 900, 32),
    Device("T4", r"T4", 65, 320, 16),
    Device("RTX A6000", r"RTX A6000", 154.8, 768, 48),
    Device("RTX 4090", r"RTX 4090", 165.2, 1008, 24),
    Device("RTX 3090", r"RTX 3090", 71, 936, 24),
)
"""GPUs that labs have. Sources: NVIDIA's data sheets and architecture papers, without sparsity; where several versions
share a name, the one with the most memory unless the name says otherwise."""


def find_device(name: str) -> Device | None:
    """The device of a name such as torch gives, `NVIDIA H100 80GB HBM3`, or of `DEVICES`; None for one not known."""
    for device in DEVICES:
        if name == device.name:
            return device
    for device in DEVICES:
        if re.search(rf"(?<![A-Za-z0-9]){device.pattern}(?![A-Za-z0-9])", name):
            return device
    return None


def device_peak_tflops(name: str) -> float | None:
    """Declared dense bf16 peak, 10^12 operations a second, of the device that torch calls so; None where not known."""
    device = find_device(name)
    return None if device is None else device.peak_tflops
