"""What a visual expert costs: a training step of a language model's blocks, with and without experts.

    mllm bench visual_expert [--hidden 512 --inner 1376 --layers 4 --rows 1 ...]

One image (a 490 px image of CogVLM: begin, 1,225 patches, end) stands in each row between the first token and the
text. Every step runs forward, backward and the gradients of what is trained; the formulations take turns, so that what
else the machine does meets all alike, and are compared by the median of their processor time.

    plain      the language model alone, all of it trained
    experts    as this project routes, by runs; experts trained, language frozen (the paper's pre-training)
    all        as this project routes, both trained
    scatter    both trained, each module by a boolean mask: picked, run, written back
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_mllm.contracts import IGNORE, Batch, TokenKind
from lightning_mllm.language.lm_loss import lm_hidden_states
from lightning_mllm.language.visual_expert import Routed, vision_mask
from lightning_mllm.language.visual_expert_lm import VisualExpertLM
from lightning_mllm.processing.shared_positions import shared_positions


class Scattered(nn.Module):
    """A `Routed` as papers write it."""

    def __init__(self, routed: Routed, mask: Tensor) -> None:
        super().__init__()
        self.language, self.vision, self.mask = routed.language, routed.vision, mask

    def forward(self, x: Tensor) -> Tensor:
        words, images = self.language(x[~self.mask]), self.vision(x[self.mask])
        written = x.new_empty(*x.shape[:-1], words.shape[-1])
        written[~self.mask], written[self.mask] = words, images
        return written


def scattered(model: PreTrainedModel, mask: Tensor) -> PreTrainedModel:
    """A copy of `model` that routes by `mask`."""
    model = deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, Routed):
            model.set_submodule(name, Scattered(module, mask))
    return model


def step(model: PreTrainedModel, embeds: Tensor, positions: Tensor, kinds: Tensor | None) -> Callable[[], None]:
    """One training step over `embeds`, whose gradient a connector would need."""
    rows = torch.zeros_like(positions)
    batch = Batch(
        ids=[str(row) for row in range(len(rows))],
        tokens=rows,
        labels=torch.full_like(rows, IGNORE),
        kinds=rows.to(torch.uint8) if kinds is None else kinds,
        segments=torch.ones_like(rows),
        positions=positions,
        images=torch.zeros(1, 3, 1, 1, dtype=torch.uint8),
        num_images=0,
    )

    def run() -> None:
        model.zero_grad()
        hidden = lm_hidden_states(model, embeds.detach().requires_grad_(), batch)
        hidden[:, -1].square().mean().backward()

    return run


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = dict(hidden=512, inner=1376, layers=4, heads=8, rows=1, image=1227, text=200, repeats=5, threads=1)
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"default {value}")
    sizes = parser.parse_args(arguments)
    torch.set_num_threads(sizes.threads)
    torch.manual_seed(0)

    spec = VisualExpertLM(
        config={
            "model_type": "llama",
            "hidden_size": sizes.hidden,
            "intermediate_size": sizes.inner,
            "num_hidden_layers": sizes.layers,
            "num_attention_heads": sizes.heads,
            "num_key_value_heads": sizes.heads,
            "vocab_size": 32,
        }
    )
    kinds = torch.full((sizes.rows, sizes.image + sizes.text), int(TokenKind.TEXT), dtype=torch.uint8)
    kinds[:, 1 : 1 + sizes.image] = int(TokenKind.IMAGE)
    kinds[:, 1], kinds[:, sizes.image] = int(TokenKind.IMAGE_BEGIN), int(TokenKind.IMAGE_END)
    positions = shared_positions(kinds, torch.ones_like(kinds, dtype=torch.int32))
    embeds = torch.randn(*kinds.shape, sizes.hidden)
    experts = spec.build().train()
    frozen = deepcopy(experts)
    for name, parameter in frozen.named_parameters():
        parameter.requires_grad_(".vision." in name)
    steps = {
        "plain": step(spec.plain.build().train(), embeds, positions, None),
        "experts": step(frozen, embeds, positions, kinds),
        "all": step(experts, embeds, positions, kinds),
        "scatter": step(scattered(experts, vision_mask(kinds)), embeds, positions, None),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(sizes.repeats + 1):
        for name, run in steps.items():
            start = time.process_time()
            run()
            # The first of each warms up.
            if turn:
                seconds[name].append(time.process_time() - start)
    plain = seconds["plain"]
    print(f"{'':10}{'min s':>10}{'median s':>10}{'ratio':>8}")
    for name, found in seconds.items():
        ratio = statistics.median(found) / statistics.median(plain)
        print(f"{name:10}{min(found):10.3f}{statistics.median(found):10.3f}{ratio:8.3f}")


if __name__ == "__main__":
    main()
