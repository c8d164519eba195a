"""A whole architecture in one file: what somebody adds who invents a new one (its experiment is `toy.yaml`).

images u8[N,3,S,S] -> patch means -> vision -> connector -> f[N,4,D] --.
tokens i[B,T] ------------------------------> language.embed -> slots overwritten -> running mean + MLP -> head
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from lightning_mllm.contracts import IGNORE, Batch, Encoded, Output, ParamGroup, Sample, Stage, Term, TokenKind
from lightning_mllm.language.generation import AnswerEnd, Decoding
from lightning_mllm.nets.base import Net
from lightning_mllm.training.module import MultimodalModule
from lightning_mllm.training.stage import StageSettings

SIDE, VIEWS, PAD, END = 8, 4, 256, 257


class Vision(nn.Module):
    """u8[N,3,8,8] -> f[N,4,D]: the mean colour of each quarter through two layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, width), nn.Linear(width, width)

    def forward(self, images: Tensor) -> Tensor:
        quarters = F.avg_pool2d(images.to(self.first.weight.dtype) / 255, SIDE // 2).flatten(2).transpose(1, 2)
        return self.second(torch.tanh(self.first(quarters)))


class Block(nn.Module):
    """A token sees the mean of itself and of what came before it."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(2 * width, width), nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        normed = self.norm(x) * real
        past = normed.cumsum(1) / real.cumsum(1).clamp(min=1)
        return x + self.dropout(self.down(F.gelu(self.up(torch.cat([normed, past], -1)))))


class Language(nn.Module):
    scale: Tensor

    def __init__(self, width: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(258, width)
        self.blocks = nn.ModuleList(Block(width, dropout) for _ in range(depth))
        self.head = nn.Linear(width, 258)
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, embeds: Tensor, segments: Tensor) -> Tensor:
        real = (segments > 0).unsqueeze(-1).to(embeds.dtype)
        for block in self.blocks:
            embeds = block(embeds, real)
        return embeds * self.scale


class _Part:
    """What the three specs share: nothing to read, nothing to shard."""

    def pretrained(self) -> Iterable[tuple[str, Tensor]] | None:
        return None

    def blocks(self, module: nn.Module) -> list[nn.Module]:
        return []


@dataclass(frozen=True, kw_only=True)
class ToyVision(_Part):
    width: int = 16

    def build(self) -> nn.Module:
        return Vision(self.width)

    def pretrained(self) -> Iterable[tuple[str, Tensor]]:
        """A fixed source, as a file would be."""
        generator = torch.Generator().manual_seed(5)
        for name, tensor in self.build().state_dict().items():
            yield name, torch.randn(tensor.shape, generator=generator) / 2


@dataclass(frozen=True, kw_only=True)
class ToyConnector(_Part):
    in_width: int = 16
    out_width: int = 24

    def build(self) -> nn.Module:
        return nn.Linear(self.in_width, self.out_width)


@dataclass(frozen=True, kw_only=True)
class ToyLanguage(_Part):
    width: int = 24
    depth: int = 2
    dropout: float = 0.0

    def build(self) -> nn.Module:
        return Language(self.width, self.depth, self.dropout)

    def blocks(self, module: nn.Module) -> list[nn.Module]:
        assert isinstance(module, Language)
        return list(module.blocks)


class ToyProcessor:
    """Bytes as tokens; each image is four slots at the front; only the last turn is learned."""

    pad_id, stop_rule = PAD, SimpleNamespace(tokens=[END], text=None)

    def encode(self, sample: Sample, *, generate: bool = False, random: Any = None, may_cut: bool = True) -> Encoded:
        prompt, answer = sample.turns[0].text.replace("<image>", ""), sample.turns[-1].text
        slots = [PAD] * (VIEWS * len(sample.images))
        given = list(f"{prompt}:".encode())
        learned = [] if generate else [*answer.encode(), END]
        tokens = torch.tensor([*slots, *given, *learned])
        kinds = torch.zeros(len(tokens), dtype=torch.uint8)
        kinds[: len(slots)] = TokenKind.IMAGE
        labels = tokens.clone()
        labels[: len(slots) + len(given)] = IGNORE
        return Encoded(
            id=sample.id,
            tokens=tokens,
            labels=labels,
            kinds=kinds,
            images=torch.stack([_pixels(ref) for ref in sample.images])
            if sample.images
            else torch.zeros(0, 3, SIDE, SIDE, dtype=torch.uint8),
            references=sample.references,
            candidates=sample.candidates,
            task=sample.task,
            prompt=prompt,
            index=sample.index,
            cluster=sample.cluster,
            question_type=sample.question_type,
        )

    def collate(self, rows: Sequence[Encoded], *, padding: Literal["right", "left"] = "right") -> Batch:
        longest = max(len(row.tokens) for row in rows)

        def pad(tensor: Tensor, value: int) -> Tensor:
            missing = longest - len(tensor)
            return F.pad(tensor, (missing, 0) if padding == "left" else (0, missing), value=value)

        images = torch.cat([row.images for row in rows])
        segments = torch.stack([pad(torch.ones_like(row.tokens), 0) for row in rows])
        return Batch(
            ids=[row.id for row in rows],
            tokens=torch.stack([pad(row.tokens, PAD) for row in rows]),
            labels=torch.stack([pad(row.labels, IGNORE) for row in rows]),
            kinds=torch.stack([pad(row.kinds, 0) for row in rows]),
            segments=segments,
            positions=(segments.cumsum(1) - 1).clamp(min=0),
            images=images if len(images) else torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8),
            num_images=len(images),
            image_rows=torch.tensor([i for i, row in enumerate(rows) for _ in row.images] or [0]),
            references=[row.references for row in rows],
            candidates=[row.candidates for row in rows],
            tasks=[row.task for row in rows],
            prompts=[row.prompt for row in rows],
            indices=[row.index for row in rows],
            clusters=[row.cluster for row in rows],
            question_types=[row.question_type for row in rows],
        )

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(token for token in tokens if token < 256).decode("utf-8", errors="replace").strip()


def _pixels(ref: Any) -> Tensor:
    import io

    content = ref.read(1 << 20)
    with content if isinstance(content, Image.Image) else Image.open(io.BytesIO(content)) as image:
        small = image.convert("RGB").resize((SIDE, SIDE))
    return torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).view(SIDE, SIDE, 3).permute(2, 0, 1).clone()


class ToyNet(Net):
    """Says what colour it sees."""

    def __init__(self, vision: Vision, connector: nn.Linear, language: Language) -> None:
        super().__init__()
        self.vision = vision
        self.connector = connector
        self.language = language

    def encode_images(self, batch: Batch) -> Tensor:
        return self.connector(self.vision(batch.images))

    def merge_visual_embeddings(self, batch: Batch, visual: Tensor) -> Tensor:
        embeds = self.language.embed(batch.tokens)
        if batch.num_images:
            slots = (batch.kinds == TokenKind.IMAGE).unsqueeze(-1)
            return embeds.masked_scatter(slots, visual.to(embeds.dtype))
        return embeds + 0 * visual.sum()

    def embeddings(self, batch: Batch) -> Tensor:
        return self.merge_visual_embeddings(batch, self.encode_images(batch))

    def forward(self, batch: Batch) -> Output:
        logits = self.language.head(self.language(self.embeddings(batch), batch.segments))[:, :-1]
        labels = batch.labels[:, 1:]
        tokens = (labels != IGNORE).sum(1)
        losses = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORE, reduction="none").sum(1)
        half = Term(losses=losses.detach() / 2, tokens=tokens, weight=0)
        return Output(terms={"language": Term(losses=losses, tokens=tokens), "half": half})

    def generate(self, batch: Batch, decoding: Decoding, end: AnswerEnd) -> list[list[int]]:
        embeds, segments, written = self.embeddings(batch), batch.segments, []
        for _ in range(decoding.max_new_tokens):
            token = self.language.head(self.language(embeds, segments))[:, -1].argmax(-1)
            written.append(token)
            embeds = torch.cat([embeds, self.language.embed(token).unsqueeze(1)], 1)
            segments = F.pad(segments, (0, 1), value=1)
        rows, (stop,) = torch.stack(written, 1).tolist(), end.tokens
        return [row[: row.index(stop)] if stop in row else row for row in rows]


class Toy(MultimodalModule):
    """The net with its stages."""

    net: ToyNet  # pyright: ignore[reportIncompatibleVariableOverride]

    stages: ClassVar[dict[str, Stage]] = {
        "align": Stage(train={"connector.*": ParamGroup()}),
        "instruct": Stage(train={"connector.*": ParamGroup(lr=2e-3), "language.*": ParamGroup()}),
    }

    def __init__(
        self,
        vision: ToyVision | None = None,
        connector: ToyConnector | None = None,
        language: ToyLanguage | None = None,
        stage: StageSettings | None = None,
        runs: str = "runs",
    ) -> None:
        components = {
            "vision": vision or ToyVision(),
            "connector": connector or ToyConnector(),
            "language": language or ToyLanguage(),
        }
        super().__init__(net=ToyNet, components=components, processor=ToyProcessor(), stage=stage, runs=runs)
