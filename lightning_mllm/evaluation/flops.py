"""Floating point operations of training: an estimate of what a net needs, and what accelerators promise."""

from __future__ import annotations

DENSE_BF16 = {
    "B200": 2250e12,
    "H200 NVL": 836e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 836e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
}
"""Part of an accelerator's name, the longer ones first -> operations a second of its data sheet: bfloat16, without
sparsity."""


def training_flops(tokens: float, parameters: float, trained: float) -> float:
    """An estimate: 2 a parameter and token for the forward pass, 2 for the gradient of its input, and 2 for that of a
    trained weight. Products of attention are left out; every parameter is taken to read every token, and gradients to
    pass through all of them.

    Args:
        tokens: Read by the language model, image slots included.
        parameters: Of the whole net.
        trained: Those that are trained.
    """
    return tokens * (4 * parameters + 2 * trained)


def peak_flops(accelerator: str) -> float | None:
    """Operations a second that the data sheet promises; None for one that is not listed.

    Args:
        accelerator: As `torch.cuda.get_device_name` calls it, such as "NVIDIA H100 80GB HBM3".
    """
    words = accelerator.replace("-", " ").split()
    return next((peak for name, peak in DENSE_BF16.items() if set(name.split()) <= set(words)), None)
