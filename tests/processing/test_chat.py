from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import pytest

from lightning_mllm.contracts import IMAGE_MARK, LITERAL_MARK, Turn
from lightning_mllm.processing.chat import Chat, load_template, names, tokenizer_template
from lightning_mllm.processing.chat_template import ChatTemplate, join_pieces
from lightning_mllm.processing.text_tokenizer import Piece
from tests.processing.tokenizer import llama_tokenizer

CHATML = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>\n"
    "{% if message['role'] == 'assistant' %}ANSWER{% else %}{{ message['content'] }}<|end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
MARKED = CHATML.replace("ANSWER", "{% generation %}{{ message['content'] }}<|end|>{% endgeneration %}{{ '\n' }}")
UNMARKED = CHATML.replace("ANSWER", "{{ message['content'] }}<|end|>\n")


def turns(*texts: str, system: str | None = None) -> tuple[Turn, ...]:
    """User and assistant in turn, after a system turn if there is one."""
    first = () if system is None else (Turn(role="system", text=system),)
    return (*first, *(Turn(role="assistant" if i % 2 else "user", text=text) for i, text in enumerate(texts)))


def template(name: str) -> ChatTemplate:
    loaded = load_template(name, llama_tokenizer())
    assert isinstance(loaded, ChatTemplate)
    return loaded


def text(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def joined(pieces: Sequence[Piece]) -> list[Piece]:
    """Whoever wrote them, the template or people."""
    return join_pieces(piece._replace(special=False) for piece in pieces)


def learned(pieces: Sequence[Piece]) -> list[str]:
    return [piece.text for piece in joined(pieces) if piece.learn]


def test_the_templates_of_the_package() -> None:
    lineages = {"blip2", "blip2_caption", "blip2_t5", "instructblip", "llama_2", "llava_v0", "plain", "vicuna_v1"}
    lineages |= {"cogvlm_base", "cogvlm_caption", "cogvlm_vqa", "cogvlm_chat", "sphinx"}
    assert lineages <= set(names())


@pytest.mark.parametrize(
    ("name", "length", "digest"),
    [
        ("vicuna_v1", 154, "1fa69e2371b762d1"),
        ("llava_v0", 156, "ace78a978005f68a"),
        ("sphinx", 156, "ace78a978005f68a"),
    ],
)
def test_system_texts_are_the_published_ones(name: str, length: int, digest: str) -> None:
    system = template(name).system
    assert len(system) == length
    assert hashlib.sha256(system.encode()).hexdigest().startswith(digest)


def test_vicuna() -> None:
    pieces = template("vicuna_v1").render(turns("what is <image> this?", "A dog.", "And now?", "2.", system="S."))
    assert joined(pieces) == [
        Piece("S. USER: ", False),
        Piece(IMAGE_MARK, False, mark=True),
        Piece("\nwhat is  this? ASSISTANT:", False),
        Piece(" A dog.</s>", True),
        Piece("USER: And now? ASSISTANT:", False),
        Piece(" 2.</s>", True),
    ]
    asked = template("vicuna_v1").render(turns("q"), generate=True)
    assert text(asked) == template("vicuna_v1").system + " USER: q ASSISTANT:" and not learned(asked)


def test_llava_v0() -> None:
    pieces = template("llava_v0").render(turns("<image>\nq", "a", "r", "b", system="S."))
    assert text(pieces) == "S.\n\n### Human: <image>\nq\n### Assistant: a\n### Human: r\n### Assistant: b\n### "
    assert learned(pieces) == [" a\n###", " b\n###"]


def test_llama_2() -> None:
    pieces = template("llama_2").render(turns("q <image>", "a", "r", "b", system="S."))
    expected = "[INST] <<SYS>>\nS.\n<</SYS>>\n\n<image>\nq [/INST] a </s><s>[INST] r [/INST] b </s>"
    assert text(pieces) == expected
    assert learned(pieces) == [" a </s>", " b </s>"]
    assert text(template("llama_2").render(turns("q", system=""), generate=True)) == "[INST] q [/INST]"


@pytest.mark.parametrize(("name", "asks"), [("cogvlm_vqa", " Short answer:"), ("cogvlm_chat", " Answer:")])
def test_cogvlm(name: str, asks: str) -> None:
    chat, image = template(name), Piece(IMAGE_MARK, False, mark=True)
    question = Piece(f"Question: What is it?{asks}", False)
    assert joined(chat.render(turns("<image>What is it?", "A dog."))) == [image, question, Piece(" A dog.</s>", True)]
    # The released code joins an earlier round by a line end, without an end token between.
    assert joined(chat.render(turns("What <image>is it?", "A dog.", "And now?", "2."))) == [
        image,
        question,
        Piece(" A dog.", True),
        Piece(f"\nQuestion: And now?{asks}", False),
        Piece(" 2.</s>", True),
    ]
    asked = chat.render(turns("<image>What is it?", "A dog.", "And now?"), generate=True)
    assert text(asked) == f"<image>Question: What is it?{asks} A dog.\nQuestion: And now?{asks}"
    assert learned(chat.answer("2.")) == [" 2.</s>"]


def test_cogvlms_fine_tuning_asks_each_task_in_its_own_way() -> None:
    chat, image = template("cogvlm_chat"), Piece(IMAGE_MARK, False, mark=True)
    for task in ("vqa", "exact", "choice"):
        assert chat.of(task) == template("cogvlm_vqa")
    assert all(chat.of(task) is chat for task in ("", "conversation", "grounding", "caption"))
    assert joined(chat.render(turns("<image>", "A dog."))) == [image, Piece("A dog.</s>", True)]


def test_cogvlm_base_is_the_query_alone() -> None:
    base, image = template("cogvlm_base"), Piece(IMAGE_MARK, False, mark=True)
    answered = [image, Piece("Describe it.", False), Piece(" A dog.</s>", True)]
    assert joined(base.render(turns("<image>\nDescribe it.", "A dog."))) == answered
    assert joined(base.render(turns("<image>\nDescribe it."), generate=True)) == answered[:2]
    assert joined(base.render(turns("<image>", "A dog."))) == [image, Piece("A dog.</s>", True)]
    assert base.render(turns("<image>"), generate=True) == [image]
    assert text(base.render(turns("q", "a", "r", "b", system="S."))) == "S.\nq a\nr b</s>"


def test_sphinx() -> None:
    pieces = template("sphinx").render(turns("q <image>", "a", "r", "b", system="S."))
    assert joined(pieces) == [
        Piece(IMAGE_MARK, False, mark=True),
        Piece("S.\n\n### Human: q\n### Assistant:", False),
        Piece(" a\n###", True),
        Piece(" Human: r\n### Assistant:", False),
        Piece(" b\n###", True),
        Piece("</s>", False),
    ]
    asked = template("sphinx").render(turns("q", "a", "see <image>"), generate=True)
    own = template("sphinx").system
    assert text(asked) == f"<image>{own}\n\n### Human: q\n### Assistant: a\n### Human: see\n### Assistant:"
    assert not learned(asked[-1:]) and learned(template("sphinx").answer("b")) == [" b\n###"]


def test_images_that_stand_first_are_those_of_all_turns() -> None:
    pieces = joined(
        template("sphinx").render(turns("is <image> like <image>?", "no", "and <image>?", "yes", system="S."))
    )
    assert [piece.mark for piece in pieces] == [True, True, True, *[False] * 5]
    assert "Human: is  like ?\n###" in pieces[3].text and text(pieces).count(IMAGE_MARK) == 3


def test_plain_keeps_the_image_and_learns_the_caption() -> None:
    plain = template("plain")
    expected = [Piece(IMAGE_MARK, False, mark=True), Piece("A dog.\n", True)]
    assert joined(plain.render(turns("Describe <image> briefly.", "A dog."))) == expected
    assert plain.render(turns("Describe <image> briefly."), generate=True) == expected[:1]
    assert joined(plain.render([Turn(role="assistant", text="Only text.")])) == [Piece("Only text.\n", True)]


def test_plain_refuses_what_it_would_lose() -> None:
    plain = template("plain")
    with pytest.raises(ValueError, match="'plain' keeps only <image> of a user turn, which has none"):
        plain.render(turns("Describe.", "A dog."))
    with pytest.raises(ValueError, match="'plain': found 4 turns, expected an image and its caption"):
        plain.render(turns("<image>", "A dog.", "And?", "No."))
    with pytest.raises(ValueError, match="'plain': found 3 turns"):
        plain.render(turns("<image>", "A dog.", system="S."))


@pytest.mark.parametrize(
    "name", ["cogvlm_base", "cogvlm_chat", "cogvlm_vqa", "llama_2", "llava_v0", "sphinx", "vicuna_v1"]
)
def test_a_prompt_is_what_training_showed_before_the_answer(name: str) -> None:
    chat = template(name)
    full = text(chat.render(turns("<image>\nq", "first", "r", "second")))
    prompt = text(chat.render(turns("<image>\nq", "first", "r"), generate=True))
    assert full.startswith(prompt) and full[len(prompt) :].startswith(" second")


@pytest.mark.parametrize("name", ["cogvlm_chat", "llama_2", "llava_v0", "sphinx", "vicuna_v1"])
def test_braces_in_a_turn_are_text(name: str) -> None:
    written = text(template(name).render(turns("what is {text} {eos}?", "a {bos} {text}")))
    assert "what is {text} {eos}?" in written and "a {bos} {text}" in written


def test_several_images_of_a_turn_all_move_to_its_front() -> None:
    pieces = template("vicuna_v1").render(turns("is <image> like <image>?", "no", system=""))
    assert text(pieces).startswith("USER: <image>\n<image>\nis  like ? ASSISTANT:")
    assert sum(piece.mark for piece in pieces) == 2


def test_a_turn_without_an_image_is_kept_to_the_letter() -> None:
    assert "USER:  q\n ASSISTANT:" in text(template("vicuna_v1").render(turns(" q\n", "a")))


@pytest.mark.parametrize(
    ("conversation", "message"),
    [
        ([Turn(role="gpt", text="a")], "turn 1: found role 'gpt', expected system, user or assistant"),  # pyright: ignore
        ([*turns("q"), Turn(role="system", text="s")], "turn 2: found a system turn, expected it first"),
        ([*turns("q"), *turns("r")], "turn 2: found a second user turn in a row"),
        ([Turn(role="assistant", text="a"), *turns("q", "b")], "found an assistant turn first"),
    ],
)
def test_what_is_no_conversation_is_refused(conversation: Sequence[Turn], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        template("vicuna_v1").render(conversation)


def test_an_answered_conversation_asks_for_no_answer() -> None:
    with pytest.raises(ValueError, match="found an answer at the end"):
        template("vicuna_v1").render(turns("q", "a"), generate=True)


def test_the_end_token_is_the_tokenizers() -> None:
    chat = load_template("vicuna_v1", llama_tokenizer(eos_token="<unk>"))
    assert learned(chat.render(turns("q", "a"))) == [" a<unk>"]
    with pytest.raises(ValueError, match="'vicuna_v1' writes a eos token, which the tokenizer does not have"):
        tokenizer = llama_tokenizer()
        tokenizer.eos_token = None
        load_template("vicuna_v1", tokenizer)


def test_names_are_checked() -> None:
    with pytest.raises(ValueError, match=r"found 'vicuna_v2', expected one of .* \(did you mean 'vicuna_v1'\?\)"):
        load_template("vicuna_v2", llama_tokenizer())
    with pytest.raises(ValueError, match=r"found a tokenizer without a chat template, expected one of .*llama_2"):
        load_template("tokenizer", llama_tokenizer())
    with pytest.raises(ValueError, match=r"template 'odd', user: found 0 times \{text\}, expected 1"):
        ChatTemplate(name="odd", system="", user="USER:", assistant="{text}", images="stay")
    with pytest.raises(ValueError, match="images: found 'back', expected one of front, before, first, stay, only"):
        ChatTemplate(name="odd", system="", user="{text}", assistant="{text}", images="back")  # pyright: ignore


def own(jinja: str) -> Chat:
    tokenizer = llama_tokenizer("<|end|>")
    tokenizer.chat_template = jinja
    return load_template("tokenizer", tokenizer)


@pytest.mark.parametrize(("jinja", "end"), [(MARKED, "<|end|>"), (UNMARKED, "<|end|>\n")])
def test_a_tokenizers_own_template(jinja: str, end: str) -> None:
    conversation = turns("see <image>?", "A dog.", "And now?", "Yes.", system="S.")
    pieces = own(jinja).render(conversation)
    assert learned(pieces) == ["A dog." + end, "Yes." + end]
    assert [piece.text for piece in pieces if piece.mark] == [IMAGE_MARK]
    asked = own(jinja).render(conversation[:-1], generate=True)
    assert text(asked) == "<s><|system|>\nS.<|end|>\n<|user|>\nsee <image>?<|end|>\n" + (
        "<|assistant|>\nA dog.<|end|>\n<|user|>\nAnd now?<|end|>\n<|assistant|>\n"
    )


def test_a_template_that_rewrites_the_past_is_refused() -> None:
    # As reasoning models do: an answer is shortened once another turn follows.
    forgetful = CHATML.replace("ANSWER", "{{ message['content'] if loop.last else '' }}<|end|>\n")
    with pytest.raises(ValueError, match="rewrites what stands before turn 2"):
        own(forgetful).render(turns("q", "a", "r", "b"))


def test_a_template_that_loses_an_image_is_refused() -> None:
    deaf = UNMARKED.replace("{{ message['content'] }}<|end|>\n{% endif", "{{ message['content'][:3] }}{% endif")
    with pytest.raises(ValueError, match="template writes 0 <image> marks, expected 1"):
        own(deaf).render(turns("see <image>?", "a"))


def test_tokenizer_template_needs_one() -> None:
    with pytest.raises(ValueError, match="without a chat template"):
        tokenizer_template(llama_tokenizer())


@pytest.mark.parametrize("name", ["vicuna_v1", "llava_v0", "cogvlm_chat"])
def test_a_turn_that_is_not_to_be_learned_is_not(name: str) -> None:
    """The text is the same; the answer and what ends it are masked, and others are not."""
    said = turns("q", "first answer", "r", "second answer")
    every = template(name).render(said)
    for masked in (1, 3):
        some = template(name).render([replace(turn, learn=i != masked) for i, turn in enumerate(said)])
        assert text(some) == text(every)
        assert learned(some) == [each for each in learned(every) if said[masked].text not in each]
        assert len(learned(some)) == 1 and len(learned(every)) == 2


def test_words_and_an_image_in_one_turn() -> None:
    asked = turns(f"<image>\nWhere is {LITERAL_MARK} written?", "There.")
    for name in ("vicuna_v1", "cogvlm_chat", "sphinx"):
        pieces = template(name).render(asked)
        assert [piece.text for piece in pieces if piece.mark] == [IMAGE_MARK]
        assert "Where is <image> written?" in text([piece for piece in pieces if not piece.mark])
        assert "\ufdd4" not in text(pieces)
