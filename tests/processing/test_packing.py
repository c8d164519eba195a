"""Laws of packed rows: every token of every document, in order, cut at the end of the row and seen by its own alone."""

from __future__ import annotations

from itertools import chain, groupby

import pytest
import torch

from lightning_mllm.contracts import IGNORE, Documents, Encoded, Sample
from lightning_mllm.language.causal import TINY_LLAMA
from lightning_mllm.language.lm_loss import lm_hidden_states
from lightning_mllm.layout import predicted
from lightning_mllm.processing.chat import load_template
from lightning_mllm.processing.collate import positions
from lightning_mllm.processing.images import ImagePolicy
from lightning_mllm.processing.processor import Processor
from tests.processing.test_processor import processor, sample
from tests.processing.tokenizer import byte_level_tokenizer, llama_tokenizer

TEXTS = ("what is the colour", "red", "the small cube is left of the sphere")
BEGIN, END = 1, 2


def packed(*texts: str, length: int | None = None, continued: bool = False, used: Processor | None = None) -> Encoded:
    documents = Documents(texts=texts, length=length, continued=continued)
    return (used or processor(max_length=64)).encode(Sample(id="row", documents=documents))


def words(text: str) -> list[int]:
    return llama_tokenizer()(text, add_special_tokens=False)["input_ids"]  # pyright: ignore


def test_a_row_is_its_documents_after_one_another() -> None:
    row = packed(*TEXTS)
    expected = [[BEGIN, *words(text), END] for text in TEXTS]
    assert row.tokens.tolist() == list(chain(*expected))
    assert row.segments is not None
    assert [len(list(run)) for _, run in groupby(row.segments.tolist())] == [len(each) for each in expected]
    assert row.segments.unique().tolist() == [1, 2, 3]
    learned = [[IGNORE, *each[1:]] for each in expected]
    assert row.labels.tolist() == list(chain(*learned)), "all tokens after the begin token"
    assert positions(row).tolist() == [place for each in expected for place in range(len(each))]


@pytest.mark.parametrize("length", range(2, 30))
def test_the_row_is_cut_at_its_end(length: int) -> None:
    whole, row = packed(*TEXTS), packed(*TEXTS, length=length)
    kept = min(length, len(whole.tokens))
    for name in ("tokens", "labels", "segments", "kinds"):
        assert torch.equal(getattr(row, name), getattr(whole, name)[:kept]), name


def test_a_document_that_goes_on_elsewhere_does_not_end() -> None:
    whole, row = packed(*TEXTS), packed(*TEXTS, continued=True)
    assert whole.tokens[-1] == END and torch.equal(row.tokens, whole.tokens[:-1])


def test_a_tokenizer_without_a_begin_token() -> None:
    used = processor(chat="plain", tokenizer=byte_level_tokenizer())
    row = packed("red cube", "left", used=used)
    assert row.tokens.tolist().count(used.tokenizer.eos_token_id) == 2 and row.segments is not None
    learned = predicted(row.labels[None], row.segments[None])
    assert learned.sum() == len(row.tokens) - 2, "the first token of a segment is predicted by nothing"


def test_nothing_in_a_document_is_special() -> None:
    """A begin token stands before each document whatever the chat template writes, and an image's mark is text."""
    tokenizer = llama_tokenizer("<image>")
    used = Processor(tokenizer, load_template("blip2", tokenizer), ImagePolicy(size=8, fit="crop"), 3, 64)
    row = packed("red </s> <image> <s> cube", used=used)
    assert used.prefix == [] and row.tokens[0] == BEGIN and row.tokens[-1] == END
    special = set(tokenizer.all_special_ids) | {used.image_id}
    assert not special & set(row.tokens[1:-1].tolist())


def test_packed_and_other_rows_share_a_batch() -> None:
    used = processor(max_length=256)
    rows = [packed(*TEXTS, used=used), used.encode(sample("what is it", "red"))]
    for side in ("right", "left"):
        batch = used.collate(rows, padding=side)
        assert batch.num_images == 0 and len(batch.images) == 1
        for number, row in enumerate(rows):
            real = batch.segments[number] > 0
            segments = torch.ones(len(row.tokens), dtype=torch.int32) if row.segments is None else row.segments
            assert torch.equal(batch.tokens[number][real], row.tokens)
            assert batch.segments[number][real].tolist() == segments.tolist()
            assert torch.equal(batch.positions[number][real], positions(row))
            assert (batch.labels[number][~real] == IGNORE).all()


def test_a_document_does_not_see_those_before_it() -> None:
    """What a causal model makes of a packed document is what it makes of it alone, on any side of the padding."""
    torch.manual_seed(0)
    model = TINY_LLAMA.build().eval()
    used = processor(max_length=64, tokenizer=llama_tokenizer())
    table = torch.nn.Embedding(len(used.tokenizer), 32)
    alone = [packed(text, used=used) for text in TEXTS]

    def hidden(rows: list[Encoded], side: str = "right") -> torch.Tensor:
        batch = used.collate(rows, padding=side)  # pyright: ignore
        with torch.no_grad():
            states = lm_hidden_states(model, table(batch.tokens), batch)
        return states[batch.segments > 0]

    expected = torch.cat([hidden([row]) for row in alone])
    for side in ("right", "left"):
        found = hidden([packed(*TEXTS, used=used), packed("red", used=used)], side)
        torch.testing.assert_close(found[: len(expected)], expected, rtol=0, atol=1e-5)


def test_rows_that_cannot_be() -> None:
    for documents, sentence in (
        ({"length": 65}, r"sample 'row': found a row of 65 tokens, expected at most 64 = max_length"),
        ({"texts": ("", "")}, r"sample 'row': found 2 documents and no token to learn"),
        ({"length": 1}, r"sample 'row': found 3 documents and no token to learn"),
    ):
        with pytest.raises(ValueError, match=sentence):
            processor(max_length=64).encode(Sample(id="row", documents=Documents(**{"texts": TEXTS, **documents})))
    tokenizer = llama_tokenizer()
    image = ImagePolicy(size=8, fit="crop")
    seq2seq = Processor(tokenizer, load_template("plain", tokenizer), image, 3, 64, seq2seq=True)
    with pytest.raises(ValueError, match="found documents for an encoder-decoder, expected a causal"):
        packed("red", used=seq2seq)
