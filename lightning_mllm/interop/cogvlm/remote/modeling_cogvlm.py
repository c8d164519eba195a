"""CogVLM (Wang et al. 2023, arXiv 2311.03079) for transformers >= 5; this file travels with the weights.

    images --vision: tower, adapter, learned begin and end--> f[N, V, D] -.
    input_ids i[B, T] --embed_tokens--> f[B, T, D] ---- an image's tokens overwritten
                                                              |
               layers: two sets of weights, one for images and one for language; one causal attention over all
                                                              |
                                            norm, lm_head --> logits f[B, T, W]

`token_type_ids` is 1 at the V tokens of each image and 0 elsewhere:

    token      text  begin  patch  patch  patch  end  text  text
    weights    lang  vision vision vision vision lang lang  lang
    position   0     1      2      2      2      3    4     5

Legend: B rows, T tokens, N images, V tokens of an image (patches and two), D width, W words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .configuration_cogvlm import CogVLMConfig
from .vision_cogvlm import CogVLMVision

Images = Sequence[Sequence[Tensor] | None]
"""Of each row its images f[3, S, S], normalised."""


def block_positions(types: Tensor, block: int) -> Tensor:
    """Of an image's tokens their position in its block, 0 being the begin; -1 at text.

    Args:
        types: i[B, T], 1 at images; blocks may follow one another.
        block: Tokens of an image.
    """
    image = types == 1
    index = torch.arange(types.shape[1], device=types.device)
    starts = image & ~F.pad(image[:, :-1], (1, 0))
    first = torch.where(starts, index, 0).cummax(1).values
    return torch.where(image, (index - first) % block, -1)


def shared_positions(types: Tensor, real: Tensor | None, block: int) -> Tensor:
    """Positions of whole rows: all patches of an image have one position.

    Args:
        types: i[B, T], as for `block_positions`.
        real: [B, T], 0 at padding; None for none.
        block: Tokens of an image.
    """
    index = block_positions(types, block)
    counts = (index <= 1) | (index == block - 1)
    if real is not None:
        counts = counts & real.bool()
    return (counts.long().cumsum(1) - 1).clamp(min=0)


def visible(real: Tensor | None, past: int, length: int, device: torch.device) -> Tensor | None:
    """bool[B or 1, 1, length, past + length]: what each new token sees; None where plain causal attention says it."""
    if real is not None and real.shape[1] != past + length:
        raise ValueError(f"attention_mask: found {real.shape[1]} columns, expected {past + length} with cached ones")
    padded = real is not None and not bool(real.all())
    if not padded and (past == 0 or length == 1):
        return None
    rows, columns = (torch.arange(*span, device=device) for span in ((past, past + length), (past + length,)))
    seen = (columns <= rows[:, None])[None]
    if real is not None:
        # Padding sees itself: a row of nothing but forbidden columns gives NaN.
        seen = (seen & real[:, None].bool()) | (columns == rows[:, None])
    return seen[:, None]


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    one, other = x.chunk(2, -1)
    return x * cos + torch.cat([-other, one], -1) * sin


def routed(
    language: Callable[[Tensor], Tensor], vision: Callable[[Tensor], Tensor], x: Tensor, image: Tensor | None
) -> Tensor:
    """Each token f[B, T, D] through its own module; `image` bool[B, T], or None where all is language."""
    if image is None:
        return language(x)
    text, images = language(x[~image]), vision(x[image])
    out = text.new_empty(*x.shape[:2], text.shape[-1])
    out[~image], out[image] = text, images
    return out


class CogVLMRMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        exact = x.float()
        exact = exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * exact.to(x.dtype)


class CogVLMMLP(nn.Module):
    def __init__(self, config: CogVLMConfig) -> None:
        super().__init__()
        width, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(width, inner, bias=bias)
        self.up_proj = nn.Linear(width, inner, bias=bias)
        self.down_proj = nn.Linear(inner, width, bias=bias)
        self.act = ACT2FN[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))


class CogVLMExpertMLP(nn.Module):
    def __init__(self, config: CogVLMConfig) -> None:
        super().__init__()
        self.language_mlp, self.vision_mlp = CogVLMMLP(config), CogVLMMLP(config)

    def forward(self, x: Tensor, image: Tensor | None) -> Tensor:
        return routed(self.language_mlp, self.vision_mlp, x, image)


class CogVLMAttention(nn.Module):
    def __init__(self, config: CogVLMConfig, layer: int) -> None:
        super().__init__()
        width, heads = config.hidden_size, config.num_attention_heads
        shared = config.num_multi_query_heads or heads
        self.layer, self.head, self.groups = layer, width // heads, heads // shared
        self.sizes = [width, shared * self.head, shared * self.head]
        fused, bias = sum(self.sizes), config.attention_bias
        self.language_expert_query_key_value = nn.Linear(width, fused, bias=bias)
        self.vision_expert_query_key_value = nn.Linear(width, fused, bias=bias)
        self.language_expert_dense = nn.Linear(width, width, bias=bias)
        self.vision_expert_dense = nn.Linear(width, width, bias=bias)

    def forward(
        self, x: Tensor, turn: tuple[Tensor, Tensor], image: Tensor | None, seen: Tensor | None, cache: Cache | None
    ) -> Tensor:
        fused = routed(self.language_expert_query_key_value, self.vision_expert_query_key_value, x, image)
        parts = [part.unflatten(-1, (-1, self.head)).transpose(1, 2) for part in fused.split(self.sizes, -1)]
        queries, keys, values = rotated(parts[0], *turn), rotated(parts[1], *turn), parts[2]
        if cache is not None:
            keys, values = cache.update(keys, values, self.layer)
        keys, values = (each.repeat_interleave(self.groups, dim=1) for each in (keys, values))
        causal = seen is None and x.shape[1] > 1
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=seen, is_causal=causal)
        return routed(self.language_expert_dense, self.vision_expert_dense, mixed.transpose(1, 2).flatten(2), image)


class CogVLMDecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: CogVLMConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = CogVLMAttention(config, layer)
        self.mlp = CogVLMExpertMLP(config)
        self.input_layernorm = CogVLMRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = CogVLMRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x: Tensor, turn: tuple[Tensor, Tensor], image: Tensor | None, seen: Tensor | None, cache: Cache | None
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), turn, image, seen, cache)
        return x + self.mlp(self.post_attention_layernorm(x), image)


class CogVLMPreTrainedModel(PreTrainedModel):
    config_class = CogVLMConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["CogVLMDecoderLayer", "CogVLMVision"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True


class CogVLMModel(CogVLMPreTrainedModel):
    def __init__(self, config: CogVLMConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(CogVLMDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = CogVLMRMSNorm(config.hidden_size, config.rms_norm_eps)
        sizes = config.vision_config
        inner = sizes["adapter_size"] or config.intermediate_size
        self.vision = CogVLMVision(sizes, config.hidden_size, inner)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        images: Images | None = None,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: object,
    ) -> BaseModelOutputWithPast:
        """Hidden states of the tokens given, those of a cache being known.

        Args:
            input_ids: i[B, T]; what stands at images is overwritten.
            images: Those that own the tokens of type 1, in order; rows that were repeated share them.
            token_type_ids: i[B, T]; None for text alone.
            attention_mask: [B, T], cached tokens included; 0 at padding.
            position_ids: i[B, T]; None only without a cache, where they follow from the types.
        """
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        types = x.new_zeros(x.shape[:2], dtype=torch.long) if token_type_ids is None else token_type_ids
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        if position_ids is None:
            if past:
                raise ValueError("position_ids: found none behind a cache, expected the positions of the new tokens")
            position_ids = shared_positions(types, attention_mask, self.vision.block)
        if images is not None:
            x = self.shown(x, images, types == 1)
        index = block_positions(types, self.vision.block)
        image = (index >= 0) & (index < self.vision.block - 1)
        image = image if bool(image.any()) else None
        if past_key_values is None and (
            self.config.use_cache and not self.training if use_cache is None else use_cache
        ):
            past_key_values = DynamicCache()
        seen, turn = visible(attention_mask, past, x.shape[1], x.device), self.turn(position_ids, x.dtype)
        for layer in self.layers:
            x = layer(x, turn, image, seen, past_key_values)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(x), past_key_values=past_key_values)

    def shown(self, x: Tensor, images: Images, image: Tensor) -> Tensor:
        """Embeddings f[B, T, D] with what is seen at `image` bool[B, T]."""
        times, left = divmod(len(x), max(1, len(images)))
        rows = [list(row or ()) for row in images for _ in range(times)]
        found = image.sum(1).tolist()
        expected = [len(row) * self.vision.block for row in rows]
        if left or found != expected:
            raise ValueError(
                f"token_type_ids: found {found} tokens of images in the rows, expected {expected} for the images given"
            )
        pixels = [each for row in images for each in row or ()]
        if not pixels:
            return x
        counts = [len(row or ()) for row in images]
        each = self.vision(torch.stack(pixels)).to(x.device, x.dtype).split(counts)
        visual = torch.cat([vectors for vectors in each for _ in range(times)]).flatten(0, 1)
        return x.masked_scatter(image[..., None], visual)

    def turn(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosine and sine f[B, 1, T, head] of the rotary embedding; computed here, so that no file need hold them."""
        half = self.config.hidden_size // self.config.num_attention_heads // 2
        powers = torch.arange(half, dtype=torch.float32, device=positions.device) / half
        angles = positions[:, None, :, None].float() / self.config.rope_theta**powers
        angles = torch.cat([angles, angles], -1)
        return angles.cos().to(dtype), angles.sin().to(dtype)


class CogVLMForCausalLM(CogVLMPreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: CogVLMConfig) -> None:
        super().__init__(config)
        self.model = CogVLMModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        images: Images | None = None,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: object,
    ) -> CausalLMOutputWithPast:
        """Logits f[B, T, W], and the loss of `labels` i[B, T] (-100 is not learned), which are shifted here."""
        output = self.model(
            input_ids=input_ids,
            images=images,
            token_type_ids=token_type_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(output.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=output.past_key_values)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        images: Images | None = None,
        **kwargs: object,
    ) -> dict[str, Any]:
        """What `forward` is given at each step: positions out of whole rows, and images with their tokens."""
        inputs = super().prepare_inputs_for_generation(  # pyright: ignore
            input_ids, attention_mask=attention_mask, **kwargs
        )
        new: Tensor = inputs["input_ids"] if inputs.get("input_ids") is not None else inputs["inputs_embeds"]
        cache: Any = kwargs.get("past_key_values")
        if token_type_ids is None:
            total = new.shape[1] + (0 if cache is None else cache.get_seq_length())
            token_type_ids = torch.zeros(len(new), total, dtype=torch.long, device=new.device)
        positions = shared_positions(token_type_ids, attention_mask, self.model.vision.block)
        inputs["position_ids"] = positions[:, -new.shape[1] :]
        inputs["token_type_ids"] = token_type_ids[:, -new.shape[1] :]
        inputs["images"] = images if bool((inputs["token_type_ids"] == 1).any()) else None
        return inputs
