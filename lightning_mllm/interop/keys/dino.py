"""Names of a DINOv2's tensors here, in timm, and in the authors' files."""

from __future__ import annotations

from lightning_mllm.weights.keymap import KeyMap, Rule

BLOCK = "blocks.{n}"

DINO_KEYS = KeyMap(
    [
        *(Rule(ours=None, theirs=(name,)) for name in ("mask_token", "head.{...}", "fc_norm.{...}")),
        *((name, name) for name in ("cls_token", "reg_token", "pos_embed", "patch_embed.{...}", "norm.{...}")),
        (f"{BLOCK}.mlp.fc1.{{...}}", f"{BLOCK}.mlp.w12.{{...}}"),
        (f"{BLOCK}.mlp.fc2.{{...}}", f"{BLOCK}.mlp.w3.{{...}}"),
        (f"{BLOCK}.{{...}}", f"{BLOCK}.{{...}}"),
    ]
)
"""`DinoVision` <- timm's files, and the authors' (`dinov2_vitg14_pretrain.pth`), which call gated layers otherwise."""
