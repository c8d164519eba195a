"""SentencePiece's `tokenizer.model` as a pipeline of the tokenizers library, token for token.

    text --special tokens cut out--> chunks --normalizer--> ▁-text --user-defined symbols cut out, BPE--> tokens

The space that SentencePiece puts before a text (`add_dummy_prefix`) is put before a chunk by the normalizer. What is a
chunk depends on `legacy` (transformers 4, tokenization_llama.py; pull requests 24565 and 25224):

    legacy       each piece of text between special tokens is encoded on its own, with a space of its own
    not legacy   the whole text has one space, unless a special token opens it; text behind a special token has none

so special tokens are matched before the normalizer (`normalized=False`), or behind it (`normalized=True`).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

from lightning_mllm.contracts import IMAGE_MARK

BLANK = "\u2581"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Types of pieces (sentencepiece_model.proto)."""
UNIGRAM, BPE = 1, 2
"""Types of models that have merges or scores (sentencepiece_model.proto)."""

Merge = tuple[str, str]


def read_model(file: Path) -> Any:
    """SentencePiece's model (`ModelProto`); None for a file of another format (tiktoken's has the same name).

    Raises:
        OSError: The file cannot be read.
    """
    model: Any = sentencepiece_model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    try:
        model.ParseFromString(file.read_bytes())
    except Exception as error:
        if type(error).__name__ != "DecodeError":
            raise
        return None
    return model if len(model.pieces) else None


def pipeline(
    model: Any, added: Sequence[AddedToken] = (), *, legacy: bool = True, prefix_space: bool = True
) -> Tokenizer:
    """The model as a pipeline, with `added` tokens and its control pieces as special ones.

    Tokens are those of SentencePiece's library, but for two things that Llama's models do not have:

    * a text that is one user-defined symbol and nothing else is that token alone, without the space token before it;
    * with a map of characters (`precompiled_charsmap`: nmt_nfkc and others) the tokenizers library replaces a character
      together with the combining marks behind it, SentencePiece without them: a ligature with an accent loses it.

    Args:
        model: `read_model`.
        added: Of the model's pieces, or behind them in this order; when they are matched is decided here.
        legacy: See the head of this file.
        prefix_space: Whether a space is put before the text where not legacy (`add_prefix_space`).

    Raises:
        ValueError: A model of words or characters, spaces behind words, unused pieces, a unigram model with bytes as
            pieces, or scores that no order of merges gives.
    """
    pieces, trainer = list(model.pieces), model.trainer_spec
    if trainer.model_type not in (UNIGRAM, BPE):
        raise ValueError(f"found model_type {trainer.model_type}, expected {UNIGRAM} (unigram) or {BPE} (BPE)")
    if trainer.treat_whitespace_as_suffix:
        raise ValueError("found treat_whitespace_as_suffix, expected spaces before words")
    if unused := [piece.piece for piece in pieces if piece.type == UNUSED]:
        raise ValueError(f"found the unused piece {unused[0]!r}, expected none")
    if trainer.model_type == BPE:
        core: Any = models.BPE(
            {piece.piece: i for i, piece in enumerate(pieces)},
            merges(pieces),
            unk_token=next((piece.piece for piece in pieces if piece.type == UNKNOWN), None),
            fuse_unk=True,
            byte_fallback=trainer.byte_fallback,
        )
    else:
        if trainer.byte_fallback:
            # The library would read the text "<0x41>" as the byte.
            raise ValueError("found a unigram model with byte_fallback, expected one without")
        core = models.Unigram([(piece.piece, piece.score) for piece in pieces], unk_id=trainer.unk_id)
    names = {token.content for token in added}
    control = [piece.piece for piece in pieces if piece.type in (CONTROL, UNKNOWN) and piece.piece not in names]
    symbols = [piece.piece for piece in pieces if piece.type == USER_DEFINED and piece.piece not in names]
    every = [*added, *(AddedToken(each, special=True) for each in control)]
    # A picture's mark cuts the text in either case: LLaVA encodes each piece of text between pictures on its own.
    normalized = [token for token in every if not legacy and token.content != IMAGE_MARK]
    tokenizer = Tokenizer(core)
    prefix_space = model.normalizer_spec.add_dummy_prefix if legacy else prefix_space
    symbolic = [AddedToken(each, special=False) for each in symbols]
    tokenizer.normalizer = normalizer(model.normalizer_spec, prefix_space, [*normalized, *symbolic])
    steps: list[Any] = [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if prefix_space else [])])
    for token in every:
        tokenizer.add_tokens([_added(token, token in normalized)])
    tokenizer.add_tokens([_added(token, True) for token in symbolic])
    return tokenizer


def normalizer(spec: Any, prefix_space: bool, normalized: Sequence[AddedToken]) -> Any:
    """SentencePiece's normalizer.

    Args:
        spec: `NormalizerSpec`.
        prefix_space: Whether a space is put before a chunk; not before one that a special token of `normalized` opens.
        normalized: Tokens that are matched in normalized text, by their own normalized text: so a chunk that is one of
            them, not special, and nothing else has no space before it, where SentencePiece puts one.
    """
    steps: list[Any] = []
    if spec.precompiled_charsmap:
        mapped = normalizers.Precompiled(spec.precompiled_charsmap)
        # The library maps it as one character.
        steps.append(normalizers.Replace("\r\n", mapped.normalize_str("\r") + mapped.normalize_str("\n")))
        steps.append(mapped)
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.escape_whitespaces:
        steps.append(normalizers.Replace(" ", BLANK))
    # The library takes spaces off beside a token, but not in this form.
    if behind := [re.escape(token.content) for token in normalized if token.rstrip]:
        steps.append(normalizers.Replace(Regex(rf"(?<={'|'.join(behind)})[\s{BLANK}]+"), ""))
    if before := [re.escape(token.content) for token in normalized if token.lstrip]:
        steps.append(normalizers.Replace(Regex(rf"[\s{BLANK}]+(?={'|'.join(before)})"), ""))
    if prefix_space:
        without = [r"\z", *(re.escape(token.content) + ("" if token.special else r"\z") for token in normalized)]
        steps.append(
            normalizers.Replace(Regex(rf"\A(?!{'|'.join(without)})"), BLANK if spec.escape_whitespaces else " ")
        )
    return normalizers.Sequence(steps)


def _added(token: AddedToken, normalized: bool) -> AddedToken:
    sides = {"lstrip": token.lstrip, "rstrip": token.rstrip, "single_word": token.single_word}
    return AddedToken(token.content, special=token.special, normalized=normalized, **sides)


def merges(pieces: Sequence[Any]) -> list[Merge]:
    """The merges of a BPE model, first ones first.

    SentencePiece merges the neighbours that give the piece of the highest score, and the leftmost of equal ones; the
    tokenizers library goes through an ordered list of pairs, and from left to right for one pair. Pieces of one score
    are in Llama's model the runs of spaces, where the leftmost run grows until there is no longer piece: longer ones
    stand first in the list.

    Raises:
        ValueError: Of two pieces of one score that overlap in a text the left one cannot stand first.
    """
    scores = {piece.piece: piece.score for piece in pieces if piece.type == NORMAL}
    groups: dict[float, list[str]] = defaultdict(list)
    for piece, score in scores.items():
        groups[score].append(piece)
    ordered: list[Merge] = []
    for score in sorted(groups, reverse=True):
        group = [pair for piece in sorted(groups[score], key=len, reverse=True) for pair in splits(piece, scores)]
        if len(groups[score]) > 1:
            _check_order(group)
        ordered += group
    return ordered


def splits(piece: str, known: Collection[str]) -> list[Merge]:
    """The pairs of known pieces that a piece is made of; where two overlap in a text, the left one first."""
    cuts = [i for i in range(1, len(piece)) if piece[:i] in known and piece[i:] in known]
    # Cut at i, a piece may overlap with itself cut at len - i if what is right of i also begins it.
    cuts.sort(key=lambda i: (not piece.startswith(piece[i:]), -i))
    return [(piece[:i], piece[i:]) for i in cuts]


def _check_order(pairs: Sequence[Merge]) -> None:
    """Raises where a pair stands behind one that what it makes overlaps on the right; runs of one character may."""
    grows: dict[str, list[str]] = defaultdict(list)
    for left, right in pairs:
        grows[left].append(right)
    before: dict[str, list[str]] = defaultdict(list)
    for left, right in pairs:
        # What the pair makes may grow to the right before anything there is merged.
        made, nexts = {left + right}, {right}
        for piece in (growing := list(made)):
            nexts.update(grows.get(piece, ()))
            growing += (grown := {piece + each for each in grows.get(piece, ())} - made)
            made |= grown
        for other in (other for each in nexts for other in before.get(each, ())):
            if len(set(left + right + other)) > 1:
                raise ValueError(
                    f"found one score for {left + right!r} and {other!r}, expected scores that order the merges"
                )
        before[left].append(left + right)
