from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AddedToken, PreTrainedTokenizerFast

from lightning_mllm.contracts import IGNORE, IMAGE_MARK, Sample, TokenKind, Turn
from lightning_mllm.processing.chat_template import ChatTemplate
from lightning_mllm.processing.stand_ins import STAND_IN
from lightning_mllm.processing.text_tokenizer import Piece, TextTokenizer
from tests.processing.test_chat import MARKED, UNMARKED, turns
from tests.processing.test_processor import RED, processor, sample
from tests.processing.tokenizer import byte_level_tokenizer, llama_tokenizer


def first_only() -> PreTrainedTokenizerFast:
    """A blank is put before the whole text alone, not before the text behind a special token."""
    tokenizer = llama_tokenizer("<|end|>", IMAGE_MARK)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")  # pyright: ignore
    return tokenizer


TOKENIZERS = {
    "always": lambda: llama_tokenizer("<|end|>", IMAGE_MARK),
    "first": first_only,
    "normalised": lambda: llama_tokenizer("<|end|>", IMAGE_MARK, normalised=True),
    "byte_level": byte_level_tokenizer,
}


def end_of(tokenizer: PreTrainedTokenizerFast) -> int:
    return tokenizer.eos_token_id  # pyright: ignore[reportReturnType]


def decoded(tokenizer: PreTrainedTokenizerFast, tokens: list[int]) -> str:
    return tokenizer.decode(tokens)  # pyright: ignore[reportReturnType]


def ids(tokenizer: PreTrainedTokenizerFast, text: str, special: bool = True) -> list[int]:
    return tokenizer(text, add_special_tokens=False, split_special_tokens=not special)["input_ids"]  # pyright: ignore


@pytest.mark.parametrize("name", TOKENIZERS)
def test_what_a_template_writes_is_tokenised_as_the_whole_string(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    whole = "what is it?  the dog</s>and </s> 2<|end|></s>\n caf\u00e9 \U0001f600"
    for cuts in ([], [8], [9, 13], [20, 24], [27], [len(whole) - 1]):
        parts = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
        tokens, _ = TextTokenizer(tokenizer)([Piece(part, False, special=True) for part in parts])
        assert tokens == ids(tokenizer, whole)
    tokens, _ = TextTokenizer(tokenizer, begins=False)([Piece("</s>the dog", False, special=True)])
    assert tokens == ids(tokenizer, "</s>the dog")


@pytest.mark.parametrize("name", TOKENIZERS)
def test_special_tokens_in_a_turn_are_text(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    text = TextTokenizer(tokenizer)
    said = "is </s> an end?</s>"
    tokens, learned = text([Piece(said, True), Piece("</s>", False, special=True)])
    assert tokens == [*ids(tokenizer, said, special=False), tokenizer.eos_token_id]
    assert learned == [True] * (len(tokens) - 1) + [False]
    # A special token that is put together of both is none.
    tokens, _ = text([Piece("a<", False, special=True), Piece("/s>", True)])
    assert tokenizer.eos_token_id not in tokens


def test_text_behind_a_begin_token_is_one_of_its_own() -> None:
    """As a tokenizer puts its begin token before a text; behind any other special token it is as the tokenizer does."""
    tokenizer = first_only()
    begun, _ = TextTokenizer(tokenizer)([Piece("</s>the dog</s>the", False, special=True)])
    assert begun == [tokenizer.eos_token_id, *ids(tokenizer, "the dog</s>the")]
    assert begun[-1] == ids(tokenizer, "</s>the")[-1] != ids(tokenizer, "the")[-1]


def test_an_end_token_that_takes_the_blanks_behind_it_is_learned_as_it_is_written() -> None:
    """As Phi-3's `<|end|>` (`rstrip`), whose line end behind it is not learned."""
    tokenizer = llama_tokenizer()
    tokenizer.add_tokens([AddedToken("<|end|>", special=True, rstrip=True, lstrip=True)])
    pieces = [
        Piece("a dog ", True),
        Piece("<|end|>", True, special=True),
        Piece("\n <|end|>", False, special=True),
        Piece(" it", True),
    ]
    tokens, learned = TextTokenizer(tokenizer)(pieces)
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert tokens == ids(tokenizer, "a dog <|end|>\n <|end|> it")
    assert [learn for token, learn in zip(tokens, learned, strict=True) if token == end] == [True, False]


def test_a_model_whose_words_are_its_special_tokens_makes_none_of_text() -> None:
    """A unigram model, as T5's, finds `</s>` among its pieces; merges may end in one."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), *((each, -2.0) for each in "</s>a")]
    merges = [("<", "/"), ("s", ">"), ("</", "s>")]
    names = ["<unk>", "</s>", *"</s>a", "</", "s>"]
    unigram = models.Unigram(pieces, unk_id=0)
    merged = models.BPE({name: i for i, name in enumerate(names)}, merges, unk_token="<unk>")
    for model in (unigram, merged):
        backend = Tokenizer(model)
        backend.add_special_tokens(["</s>"])
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")
        assert ids(tokenizer, "</s>", special=False) == [1]
        tokens, _ = TextTokenizer(tokenizer)([Piece("a</s>", True), Piece("</s>", True, special=True)])
        assert tokens[-1] == 1 and 1 not in tokens[:-1] and 0 not in tokens
        assert tokenizer.decode(tokens).replace(" ", "") == "a</s></s>"  # pyright: ignore


def test_a_word_of_the_vocabulary_that_is_special_is_not_made_of_text() -> None:
    """Models that look up whole words: WordLevel, WordPiece, and BPE as Llama 3's (`ignore_merges`)."""
    words = {"<unk>": 0, "</s>": 1, "dog": 2, "<": 3, "/": 4, "s": 5, ">": 6}
    looked_up = [
        models.WordLevel(words, unk_token="<unk>"),
        models.WordPiece(words, unk_token="<unk>"),
        models.BPE(words, [], unk_token="<unk>", ignore_merges=True),
    ]
    for model in looked_up:
        backend = Tokenizer(model)
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
        backend.add_special_tokens(["</s>", "<unk>"])
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")
        assert ids(tokenizer, "dog </s>", special=False) == [2, 1]
        pieces = [Piece("dog </s> \u4e2d", True), Piece("</s>", False, special=True), Piece(" dog", True)]
        tokens, learned = TextTokenizer(tokenizer)(pieces)
        assert tokens == [2, *([3, 4, 5, 6] if isinstance(model, models.BPE) else [0]), 0, 1, 2]
        assert learned == [True] * (len(tokens) - 2) + [False, True]


def test_what_workers_are_sent_takes_no_special_token_from_a_turn_either() -> None:
    text = TextTokenizer(llama_tokenizer())
    pieces = [Piece("a </s>", True), Piece("</s>", True, special=True)]
    before = text(pieces)
    assert pickle.loads(pickle.dumps(text))(pieces) == before and before[0].count(2) == 1


def test_noncharacters_that_stand_for_special_tokens_are_refused() -> None:
    text = TextTokenizer(llama_tokenizer())
    assert text([Piece("a\ufdd0b", True)])[0]
    with pytest.raises(ValueError, match=r"found the noncharacters '\\ufdd0\\ufdd1' in a text, expected none"):
        text([Piece("</s>" + STAND_IN, True)])


# In a row


@pytest.mark.parametrize("chat", ["vicuna_v1", "llama_2", "cogvlm_chat", "instructblip"])
def test_only_the_template_ends_an_answer(chat: str) -> None:
    used = processor(chat, llama_tokenizer(IMAGE_MARK))
    end = end_of(used.tokenizer)
    plain = used.encode(sample("what is it?", "a dog")).tokens.tolist().count(end)
    odd = used.encode(sample("what is </s>?", "a </s> <s> <image> dog"))
    assert odd.tokens.tolist().count(end) == plain
    learned = odd.labels[odd.labels != IGNORE].tolist()
    assert learned.count(end) == 1 and odd.kinds.eq(TokenKind.TEXT).all()
    assert decoded(used.tokenizer, learned[:-1]).strip() == "a </s> <s> <image> dog"
    used.special_in_turns = True
    assert used.encode(sample("what is it?", "a </s> dog")).tokens.tolist().count(end) == plain + 1


def test_marks_of_images_count_in_the_users_turns_alone() -> None:
    used = processor(tokenizer=llama_tokenizer(IMAGE_MARK))
    row = used.encode(sample("<image> write <image>", "<image>", images=(RED, RED), system="<image> is a mark."))
    assert (row.kinds == TokenKind.IMAGE).sum() == 2 * used.vectors_per_image
    assert row.tokens.tolist().count(used.image_id) == 2 * used.vectors_per_image
    used.chat = replace(used.chat, images="first", system_inside=True)  # pyright: ignore
    again = used.encode(sample("<image> write <image>", "<image>", images=(RED, RED), system="<image> is a mark."))
    assert again.kinds.eq(TokenKind.IMAGE).sum() == 2 * used.vectors_per_image


@pytest.mark.parametrize("jinja", [MARKED, UNMARKED])
def test_a_tokenizers_own_template_writes_its_special_tokens_and_no_turn_does(jinja: str) -> None:
    tokenizer = llama_tokenizer("<|end|>", IMAGE_MARK)
    tokenizer.chat_template = jinja
    used = processor("tokenizer", tokenizer)
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    said = "a <|end|> \ufdd20\ufdd3 <image>"
    row = used.encode(sample("<image>what is <|end|></s>", said, images=(RED,)))
    assert row.tokens.tolist().count(end) == 2 and row.tokens.tolist().count(tokenizer.eos_token_id) == 0
    assert (row.kinds == TokenKind.IMAGE).sum() == used.vectors_per_image
    learned = row.labels[row.labels != IGNORE].tolist()
    assert decoded(tokenizer, learned).startswith(said + "<|end|>")


def test_an_answer_that_is_judged_has_the_tokens_of_training() -> None:
    for tokenizer in (llama_tokenizer(normalised=True), first_only(), byte_level_tokenizer()):
        for chat in ("vicuna_v1", "sphinx", "cogvlm_chat", "llava_v0"):
            used, said = processor(chat, tokenizer), "a dog </s>  is it"
            trained = used.encode(sample("what is it?", said))
            judged = used.with_answers(used.collate([used.encode(sample("what is it?"), generate=True)]), [said])
            learned = trained.labels[trained.labels != IGNORE].tolist()
            assert judged.labels[judged.labels != IGNORE].tolist() == learned


def test_an_encoder_decoder_learns_the_end_of_the_template_alone() -> None:
    used = processor("blip2_t5")
    used.seq2seq = True
    row = used.encode(Sample(id="s", turns=turns("what </s> is it?", "a </s> dog")))
    assert row.targets is not None and row.targets.tolist().count(2) == row.tokens.tolist().count(2) == 1
    assert decoded(used.tokenizer, row.targets[:-1].tolist()) == "a </s> dog"
    assert isinstance(used.chat, ChatTemplate)
    with pytest.raises(ValueError, match="found nothing to learn at the end"):
        used.encode(Sample(id="s", turns=(Turn(role="user", text="what?"),)))
