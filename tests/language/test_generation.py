"""Laws of generation: cached equals uncached, beams score at least greedy, nucleus sampling is seeded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

from lightning_mllm.language.generation import AnswerEnd, Decoding, TextEnd, generate
from lightning_mllm.processing.stopping import StopText

VOCAB, WIDTH, EOS, PAD = 48, 32, 2, 0


def causal(kind: str = "llama", seed: int = 0):
    sizes = {
        "llama": dict(hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2),
        "opt": dict(
            hidden_size=WIDTH, ffn_dim=64, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=WIDTH
        ),
    }[kind]
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, vocab_size=VOCAB, max_position_embeddings=64, **sizes)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    with torch.no_grad():  # larger weights, so that tokens differ clearly in score and some rows end early
        for parameter in model.parameters():
            parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
    return model


def seq2seq(seed: int = 0):
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        "t5", vocab_size=VOCAB, d_model=WIDTH, d_kv=16, d_ff=64, num_layers=2, num_heads=2, decoder_start_token_id=PAD
    )
    config.feed_forward_proj, config.is_gated_act, config.dense_act_fn = "gated-gelu", True, "gelu"
    model = AutoModelForSeq2SeqLM.from_config(config).eval()
    with torch.no_grad():  # as above; a head of its own, so that the last token is not what it says again
        model.lm_head.weight = torch.nn.Parameter(torch.randn(VOCAB, WIDTH) / 2)
        for block in model.decoder.block:
            for parameter in block.parameters():
                parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
    return model


def model_of(kind: str):
    return seq2seq() if kind == "t5" else causal(kind)


def prompts(model, lengths: tuple[int, ...], seed: int = 1):
    """Left-padded embeddings and their mask; the padding holds noise that must not matter."""
    longest = max(lengths)
    tokens = torch.randint(3, VOCAB, (len(lengths), longest), generator=torch.Generator().manual_seed(seed))
    mask = torch.stack([torch.arange(longest) >= longest - n for n in lengths])
    return model.get_input_embeddings()(tokens).detach(), mask


def greedy_uncached(model, embeds, steps: int) -> list[int]:
    """One row, the whole prefix run anew for each token."""
    table, row = model.get_input_embeddings(), []
    for _ in range(steps):
        with torch.no_grad():
            token = int(model(inputs_embeds=embeds[None], use_cache=False).logits[0, -1].argmax())
        if token == EOS:
            break
        row.append(token)
        embeds = torch.cat([embeds, table(torch.tensor([token])).detach()])
    return row


def log_probability(model, embeds, row: list[int], ended: bool) -> float:
    tokens = torch.tensor(row + [EOS] * ended)
    whole = torch.cat([embeds, model.get_input_embeddings()(tokens).detach()])
    with torch.no_grad():
        logits = model(inputs_embeds=whole[None], use_cache=False).logits[0, len(embeds) - 1 : -1]
    return float(logits.log_softmax(-1).gather(1, tokens[:, None]).sum())


@pytest.mark.parametrize("kind", ["llama", "opt"])
def test_cached_equals_uncached_and_padding_is_invisible(kind: str) -> None:
    model = causal(kind)
    embeds, mask = prompts(model, (3, 9, 6, 1))
    rows = generate(model, embeds, mask, Decoding(max_new_tokens=12), AnswerEnd(tokens=(EOS,), pad=PAD))
    alone = [greedy_uncached(model, e[m], 12) for e, m in zip(embeds, mask, strict=True)]
    assert rows == alone
    assert len({tuple(row) for row in rows}) > 1


def test_rows_are_cut_before_any_end_token() -> None:
    model = causal()
    embeds, mask = prompts(model, (3, 9, 6, 1))
    free = generate(model, embeds, mask, Decoding(max_new_tokens=12), AnswerEnd(tokens=(VOCAB - 1,), pad=PAD))
    stops = (free[0][4], free[1][0])
    cut = generate(model, embeds, mask, Decoding(max_new_tokens=12), AnswerEnd(tokens=tuple(stops), pad=PAD))
    expected = [row[: next((i for i, t in enumerate(row) if t in stops), len(row))] for row in free]
    assert cut == expected
    assert cut[1] == []


def test_min_new_tokens_delays_the_end() -> None:
    model = causal()
    embeds, mask = prompts(model, (5,))
    first = generate(model, embeds, mask, Decoding(max_new_tokens=1), AnswerEnd(tokens=(VOCAB - 1,), pad=PAD))[0][0]
    assert generate(model, embeds, mask, Decoding(max_new_tokens=6), AnswerEnd(tokens=(first,), pad=PAD)) == [[]]
    row = generate(
        model, embeds, mask, Decoding(max_new_tokens=6, min_new_tokens=3), AnswerEnd(tokens=(first,), pad=PAD)
    )[0]
    assert len(row) >= 3


def test_beams_find_likelier_answers_than_greedy() -> None:
    model = causal(seed=3)
    embeds, mask = prompts(model, (4, 7, 5, 2, 6, 3))
    greedy = generate(model, embeds, mask, Decoding(max_new_tokens=5), AnswerEnd(tokens=(VOCAB,), pad=PAD))
    beam = generate(model, embeds, mask, Decoding(max_new_tokens=5, num_beams=8), AnswerEnd(tokens=(VOCAB,), pad=PAD))
    score = [
        [log_probability(model, e[m], row, False) for e, m, row in zip(embeds, mask, rows, strict=True)]
        for rows in (greedy, beam)
    ]
    assert beam != greedy
    assert sum(score[1]) > sum(score[0])


def test_exhaustive_beams_find_the_best_pair() -> None:
    model = causal(seed=5)
    embeds, mask = prompts(model, (4,))
    row = generate(
        model, embeds, mask, Decoding(max_new_tokens=2, num_beams=VOCAB), AnswerEnd(tokens=(VOCAB,), pad=PAD)
    )[0]
    table = model.get_input_embeddings().weight.detach()
    prefixes = torch.cat([embeds.expand(VOCAB, -1, -1), table[:, None]], dim=1)
    with torch.no_grad():
        logits = model(inputs_embeds=prefixes, use_cache=False).logits[:, -2:].log_softmax(-1)
    pairs = logits[0, 0][:, None] + logits[:, 1]
    best = divmod(int(pairs.argmax()), VOCAB)
    assert tuple(row) == best


def test_sampling_is_a_function_of_the_seed_and_leaves_the_global_stream_alone() -> None:
    model = causal()
    embeds, mask = prompts(model, (3, 9, 6))

    def sampled(seed: int | None) -> list[list[int]]:
        how = Decoding(max_new_tokens=8, top_p=0.95, temperature=2.0, seed=seed)
        return generate(model, embeds, mask, how, AnswerEnd(tokens=(EOS,), pad=PAD))

    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = sampled(0)
    assert torch.equal(torch.get_rng_state(), before)
    assert sampled(0) == first
    assert sampled(1) != first
    assert sampled(None) != sampled(None)


def test_nucleus_holds_more_than_fifty_tokens_and_no_more_than_top_p() -> None:
    model = causal()
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", vocab_size=400, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        # Nearly, not exactly equal: a top-k filter keeps ties.
        model.lm_head.weight.copy_(1e-5 * torch.arange(400.0)[:, None].expand(-1, 16))
    embeds = torch.ones(1500, 1, 16)
    mask = torch.ones(1500, 1, dtype=torch.bool)

    def seen(top_p: float) -> int:
        rows = generate(model, embeds, mask, Decoding(max_new_tokens=1, top_p=top_p), AnswerEnd(tokens=(400,), pad=PAD))
        return len({row[0] for row in rows})

    assert seen(1.0) > 300
    assert 90 <= seen(0.25) <= 101


def test_published_settings_of_the_model_do_not_leak() -> None:
    model = causal()
    embeds, mask = prompts(model, (3, 9, 6))
    expected = generate(model, embeds, mask, Decoding(max_new_tokens=8), AnswerEnd(tokens=(EOS,), pad=PAD))
    published = GenerationConfig(do_sample=True, top_p=0.6, temperature=0.9, no_repeat_ngram_size=1, max_length=5)
    model.generation_config = published
    assert generate(model, embeds, mask, Decoding(max_new_tokens=8), AnswerEnd(tokens=(EOS,), pad=PAD)) == expected
    assert model.generation_config is published


def test_encoder_decoder_answers_without_the_start_token() -> None:
    model = seq2seq()
    embeds, mask = prompts(model, (3, 7))
    right = torch.tensor([[1, 1, 1, 0, 0, 0, 0], [1] * 7])  # an encoder may be padded on either side
    for padding in (mask, right):
        rows = generate(model, embeds, padding, Decoding(max_new_tokens=6), AnswerEnd(tokens=(1,), pad=PAD))
        for row, e, m in zip(rows, embeds, padding.bool(), strict=True):
            assert row == penalised_uncached(model, e[m], 6, penalty=1.0, eos=1)


def penalised_uncached(model, embeds, steps: int, *, penalty: float, least: int = 0, eos: int = EOS) -> list[int]:
    """One row, greedily, the whole prefix run anew for each token, the penalty and the least length by hand."""
    table, row = model.get_input_embeddings(), []
    while len(row) < steps:
        with torch.no_grad():
            if model.config.is_encoder_decoder:
                written = torch.tensor([[PAD, *row]])
                scores = model(inputs_embeds=embeds[None], decoder_input_ids=written, use_cache=False).logits[0, -1]
            else:
                written = torch.tensor([row], dtype=torch.long)
                whole = torch.cat([embeds, table(written[0]).detach()])
                scores = model(inputs_embeds=whole[None], use_cache=False).logits[0, -1]
        # The start token is written too, as in transformers.
        for token in set(written[0].tolist()):
            scores[token] = scores[token] / penalty if scores[token] > 0 else scores[token] * penalty
        if len(row) < least:
            scores[eos] = -torch.inf
        token = int(scores.argmax())
        if token == eos:
            break
        row.append(token)
    return row


@pytest.mark.parametrize("kind", ["llama", "opt", "t5"])
def test_the_repetition_penalty_sees_what_was_written_and_not_the_padding(kind: str) -> None:
    model = model_of(kind)
    embeds, mask = prompts(model, (3, 9, 6, 1))
    free = generate(model, embeds, mask, Decoding(max_new_tokens=12), AnswerEnd(tokens=(VOCAB,), pad=PAD))
    how = Decoding(max_new_tokens=12, repetition_penalty=3.0)
    rows = generate(model, embeds, mask, how, AnswerEnd(tokens=(VOCAB,), pad=PAD))
    assert sum(len(set(row)) for row in rows) > sum(len(set(row)) for row in free)
    for row, e, m in zip(rows, embeds, mask, strict=True):
        assert row == penalised_uncached(model, e[m], 12, penalty=3.0, eos=VOCAB)


@pytest.mark.parametrize("kind", ["llama", "opt", "t5"])
def test_min_new_tokens_counts_new_tokens_alone(kind: str) -> None:
    model = model_of(kind)
    embeds, mask = prompts(model, (3, 9, 6, 1))
    # The end is what the second row would say first.
    end = generate(model, embeds, mask, Decoding(max_new_tokens=1), AnswerEnd(tokens=(VOCAB,), pad=PAD))[1][0]
    how = Decoding(max_new_tokens=8, min_new_tokens=4)
    rows = generate(model, embeds, mask, how, AnswerEnd(tokens=(end,), pad=PAD))
    assert generate(model, embeds, mask, Decoding(max_new_tokens=8), AnswerEnd(tokens=(end,), pad=PAD))[1] == []
    for row, e, m in zip(rows, embeds, mask, strict=True):
        assert row == penalised_uncached(model, e[m], 8, penalty=1.0, least=4, eos=end)
        assert len(row) >= 4


PUBLISHED = {
    # BLIP-2's questions and captions, InstructBLIP (released evaluation settings, but shorter)
    "questions": dict(num_beams=5, max_new_tokens=10, length_penalty=-1.0),
    "captions": dict(num_beams=5, max_new_tokens=12, min_new_tokens=8),
    "instructions": dict(num_beams=5, max_new_tokens=12, repetition_penalty=1.5),
}


@pytest.mark.parametrize("settings", PUBLISHED.values(), ids=PUBLISHED)
@pytest.mark.parametrize("kind", ["llama", "opt", "t5"])
def test_published_searches_are_those_of_transformers_on_each_row(kind: str, settings: dict) -> None:
    """`generate` of transformers, given one row without padding, where its repetition penalty is right."""
    model = model_of(kind)
    embeds, mask = prompts(model, (3, 9, 1))
    rows = generate(model, embeds, mask, Decoding(**settings), AnswerEnd(tokens=(EOS,), pad=PAD))
    for row, e, m in zip(rows, embeds, mask, strict=True):
        alone = model.generate(
            inputs_embeds=e[m][None],
            attention_mask=torch.ones(1, int(m.sum()), dtype=torch.long),
            **settings,
            do_sample=False,
            eos_token_id=EOS,
            pad_token_id=PAD,
        )[0].tolist()
        alone = alone[1:] if kind == "t5" else alone
        assert row == (alone[: alone.index(EOS)] if EOS in alone else alone)
    assert len({tuple(row) for row in rows}) > 1


@pytest.mark.parametrize("kind", ["llama", "opt", "t5"])
def test_embeddings_are_searched_as_their_tokens_would_be(kind: str) -> None:
    """`generate` of transformers, given the tokens of the prompts."""
    model = model_of(kind)
    tokens = torch.randint(3, VOCAB, (4, 6), generator=torch.Generator().manual_seed(2))
    how: dict[str, Any] = dict(num_beams=5, max_new_tokens=10, length_penalty=-1.0)
    mask = torch.ones_like(tokens)
    rows = generate(
        model, model.get_input_embeddings()(tokens).detach(), mask, Decoding(**how), AnswerEnd(tokens=(EOS,), pad=PAD)
    )
    whole = model.generate(tokens, attention_mask=mask, **how, do_sample=False, eos_token_id=EOS, pad_token_id=PAD)
    for row, each in zip(rows, whole[:, 1 if kind == "t5" else 6 :].tolist(), strict=True):
        assert row == (each[: each.index(EOS)] if EOS in each else each)


def test_right_padding_is_refused() -> None:
    model = causal()
    embeds, mask = prompts(model, (3, 9))
    with pytest.raises(ValueError, match="padded on the left"):
        generate(model, embeds, mask.flip(1), Decoding(), AnswerEnd(tokens=(EOS,), pad=PAD))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(max_new_tokens=0), "max_new_tokens is 0, expected at least 1"),
        (dict(num_beams=0), "num_beams is 0"),
        (dict(top_p=1.5), "top_p is 1.5"),
        (dict(temperature=0.0, top_p=0.9), "temperature is 0.0"),
        (dict(temperature=0.7), "nothing is sampled"),
        (dict(length_penalty=-1.0), "num_beams is 1"),
        (dict(min_new_tokens=40), "from 0 to max_new_tokens, 32"),
    ],
)
def test_wrong_settings_name_the_key(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Decoding(**settings)


def text_tokenizer() -> PreTrainedTokenizerFast:
    """One letter a token, of the size of the models above."""
    letters = {chr(ord("A") + i): i for i in range(VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token="A"))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def read(tokenizer: PreTrainedTokenizerFast, tokens: list[int]) -> str:
    text = tokenizer.decode(tokens)
    assert isinstance(text, str)
    return text


def steps_of(model) -> list[int]:
    """Counts the passes of a model, in place."""
    counted: list[int] = []
    model.get_decoder().register_forward_hook(lambda *_: counted.append(1))
    return counted


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_text_of_several_tokens_stops_each_row_as_soon_as_it_is_written(kind: str, beams: int) -> None:
    model, tokenizer = model_of(kind), text_tokenizer()
    embeds, mask = prompts(model, (3, 9, 6, 1))
    how = Decoding(max_new_tokens=30, num_beams=beams)
    free = generate(model, embeds, mask, how, AnswerEnd(tokens=(VOCAB,), pad=PAD))
    text = read(tokenizer, free[0][3:6])
    stop = StopText(tokenizer, text)
    rows = generate(model, embeds, mask, how, AnswerEnd(tokens=(VOCAB,), pad=PAD, text=stop))
    assert any(text in read(tokenizer, row) for row in rows)
    for row in rows:
        written = read(tokenizer, row)
        assert len(row) == 30 or (written.endswith(text) and written.count(text) == 1)
    for row, e, m in zip(rows, embeds, mask, strict=True):
        assert generate(model, e[m][None], m[m][None], how, AnswerEnd(tokens=(VOCAB,), pad=PAD, text=stop)) == [row]
    if beams == 1:
        first = free[0][: read(tokenizer, free[0]).index(text) + len(text)]
        assert rows[0] == first
        # The row alone ends there: nothing is computed for the tokens up to the limit.
        counted = steps_of(model)
        generate(
            model, embeds[:1][:, mask[0]], mask[:1][:, mask[0]], how, AnswerEnd(tokens=(VOCAB,), pad=PAD, text=stop)
        )
        assert len(counted) == len(first)


def test_a_text_is_searched_in_the_last_tokens_alone() -> None:
    read: list[int] = []
    tokenizer = text_tokenizer()

    class Counts(StopText):
        def __call__(self, tokens: Sequence[int]) -> bool:
            read.append(len(tokens))
            return super().__call__(tokens)

    criterion = TextEnd(Counts(tokenizer, "###"), start=0)
    assert criterion(torch.full((2, 25), 5), None).tolist() == [False, False]
    assert read == [4, 4]
