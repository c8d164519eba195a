from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import LlamaForCausalLM

from lightning_mllm.architectures.language_model import TINY, LanguageModelPretraining
from lightning_mllm.contracts import IGNORE, Sample, Turn
from lightning_mllm.language.generation import Decoding
from lightning_mllm.language.seq2seq import TINY_T5
from lightning_mllm.training.stage import StageSettings
from tests.architectures.samples import ONE, TEXT, batch_of, gradients, packed, sample
from tests.interop.tables import keys

DOCUMENT = Sample(id="document", turns=(Turn(role="assistant", text="There is a cube."),))
LONGER = sample("Say something else, please.", "Something else.")
OTHER = Sample(id="other", turns=(Turn(role="assistant", text="It is red."),))


def built(chat: str = "plain", stage: str | None = None) -> LanguageModelPretraining:
    settings = None if stage is None else StageSettings(name=stage)
    module = LanguageModelPretraining.tiny(chat=chat, stage=settings)
    module.configure_model()
    return module.eval()


def test_parity_with_transformers() -> None:
    module = built()
    config: Any = module.net.language.config
    theirs = LlamaForCausalLM(config).eval()
    names = dict(keys(module, "hf_language_model").to_theirs(module.state_dict().items()))
    theirs.load_state_dict(names, strict=True)
    batch = batch_of(module, DOCUMENT, OTHER)
    expected = theirs(batch.tokens, attention_mask=(batch.segments > 0).long(), labels=batch.labels)
    with torch.no_grad():
        assert_close(module(batch).loss, expected.loss, atol=1e-5, rtol=0)


def test_a_document_is_learned_whole() -> None:
    module = built()
    batch = batch_of(module, DOCUMENT)
    assert module(batch).count == batch.tokens.shape[1] - 1 == len("There is a cube.\n")


def test_of_a_conversation_only_answers_are_learned() -> None:
    module = built("vicuna_v1")
    batch = batch_of(module, TEXT)
    assert module(batch).count == (batch.labels != IGNORE).sum() == len(" Something.") + 1


def test_packed_documents_do_not_see_one_another() -> None:
    module = built().requires_grad_(True)
    rows, row = batch_of(module, DOCUMENT, OTHER), packed(module, DOCUMENT, OTHER)
    assert module(rows).count == module(row).count
    apart, together = gradients(module, rows), gradients(module, row)
    for name, gradient in apart.items():
        assert_close(together[name], gradient, atol=1e-5, rtol=0)


def test_everything_is_trained() -> None:
    module = built(stage="pretrain")
    found = gradients(module, batch_of(module, DOCUMENT))
    assert set(found) == {name for name, _ in module.net.named_parameters()}
    assert all((gradient != 0).any() for gradient in found.values())


def test_it_answers() -> None:
    module = built("vicuna_v1")
    with torch.no_grad():
        rows = module.generate(batch_of(module, TEXT, TEXT, generate=True), Decoding(max_new_tokens=3))
    assert rows[0] == rows[1] and len(rows[0]) <= 3


def seq2seq(stage: str | None = None) -> LanguageModelPretraining:
    settings = None if stage is None else StageSettings(name=stage)
    module = LanguageModelPretraining.tiny(language=TINY_T5, chat="blip2_t5", stage=settings)
    module.configure_model()
    return module.eval()


def test_an_encoder_decoder_learns_the_answer_from_what_stands_before_it() -> None:
    module = seq2seq()
    batch = batch_of(module, TEXT, LONGER)
    assert batch.targets is not None
    assert module.processor.decode(batch.tokens[0]) == "Say something."
    assert module.processor.decode(batch.targets[1]) == "Something else."
    expected = module.net.language(
        input_ids=batch.tokens, attention_mask=(batch.segments > 0).long(), labels=batch.targets
    )
    output = module(batch)
    assert_close(output.loss, expected.loss, atol=1e-6, rtol=0)
    assert output.count == (batch.targets != IGNORE).sum() == len("Something.Something else.") + 2


def test_all_of_an_encoder_decoder_is_trained_and_it_answers() -> None:
    module = seq2seq("pretrain")
    found = gradients(module, batch_of(module, TEXT))
    assert set(found) == {name for name, _ in module.net.named_parameters()}
    with torch.no_grad():
        rows = module.generate(batch_of(module, TEXT, LONGER, generate=True), Decoding(max_new_tokens=3))
        (alone,) = module.generate(batch_of(module, TEXT, generate=True), Decoding(max_new_tokens=3))
    assert rows[0] == alone and len(alone) <= 3


def test_images_are_refused() -> None:
    module = built("vicuna_v1")
    with pytest.raises(ValueError, match=r"found 1 images .*expected text alone"):
        module(batch_of(module, ONE))


def test_a_tokenizer_larger_than_the_embedding_is_refused() -> None:
    config = {**TINY["language"].config, "vocab_size": 100}
    with pytest.raises(ValueError, match="tokenizer has 259 tokens, expected at most 100"):
        LanguageModelPretraining.tiny(language=type(TINY["language"])(config=config))
