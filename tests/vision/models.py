"""A small CLIP of open_clip, here and in transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
from safetensors.torch import save_file

CONFIG: dict[str, Any] = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 32, "layers": 4, "head_width": 16, "patch_dropout": 0.5},
    "text_cfg": {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1},
}
MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


def write_folder(folder: Path) -> open_clip.CLIP:
    """A folder as open_clip writes it, with the model in it."""
    net = open_clip.CLIP(CONFIG["embed_dim"], CONFIG["vision_cfg"], CONFIG["text_cfg"], quick_gelu=True)
    whole = {"model_cfg": CONFIG, "preprocess_cfg": {"mean": MEAN, "std": STD, "resize_mode": "squash"}}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(whole))
    save_file(net.state_dict(), folder / "open_clip_model.safetensors")
    return net.eval()
