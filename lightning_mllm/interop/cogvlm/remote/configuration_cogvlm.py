"""The sizes of a CogVLM (Wang et al. 2023, arXiv 2311.03079); this file travels with the weights."""

from typing import Any

from transformers import PreTrainedConfig

VISION: dict[str, Any] = {
    "hidden_size": 1792,
    "num_heads": 16,
    "num_hidden_layers": 63,
    "intermediate_size": 15360,
    "num_positions": 1226,
    "patch_size": 14,
    "image_size": 490,
    "in_channels": 3,
    "layer_norm_eps": 1e-6,
    "dropout_prob": 0.0,
    "hidden_act": "gelu",
    "norms": "branch",
    "output_position_scale": 0.0,
    "adapter_size": None,
}
"""The published tower, EVA2-CLIP-E at 490 pixels; the last three fields are of this file alone.

norms: "branch", behind attention and MLP (EVA2), or "input", before them and before the first block (CLIP).
output_position_scale: amplitude of the sines that are added behind the tower; the weights hold them, 0 adds none.
adapter_size: inner width of the adapter; None takes the language model's intermediate_size.
"""


class CogVLMConfig(PreTrainedConfig):
    """A language model in Llama's terms, its visual experts' sizes being the same, and a vision tower."""

    model_type = "cogvlm"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 (transformers' own way)

    def __init__(
        self,
        vocab_size: int = 32000,
        hidden_size: int = 4096,
        intermediate_size: int = 11008,
        num_hidden_layers: int = 32,
        num_attention_heads: int = 32,
        num_multi_query_heads: int | None = None,
        hidden_act: str = "silu",
        max_position_embeddings: int = 2048,
        initializer_range: float = 0.02,
        rms_norm_eps: float = 1e-5,
        rope_theta: float = 10000.0,
        attention_bias: bool = False,
        mlp_bias: bool = False,
        vision_config: dict[str, Any] | None = None,
        template_version: str = "chat",
        image_token_id: int = 0,
        pad_token_id: int | None = 0,
        bos_token_id: int | None = 1,
        eos_token_id: int | list[int] | None = 2,
        tie_word_embeddings: bool = False,
        use_cache: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_multi_query_heads = num_multi_query_heads
        self.hidden_act = hidden_act
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.rms_norm_eps = rms_norm_eps
        self.rope_theta = rope_theta
        self.attention_bias = attention_bias
        self.mlp_bias = mlp_bias
        self.vision_config = {**VISION, **(vision_config or {})}
        self.template_version = template_version
        self.image_token_id = image_token_id
        self.use_cache = use_cache
        self.pad_token_id = pad_token_id
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self.tie_word_embeddings = tie_word_embeddings
