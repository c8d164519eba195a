from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

import pytest
import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast

from lightning_mllm.contracts import IGNORE, IMAGE_MARK, Encoded, Sample, TokenKind, Turn
from lightning_mllm.processing.chat import load_template
from lightning_mllm.processing.chat_template import ChatTemplate
from lightning_mllm.processing.images import ImageError, ImageLimits, ImagePolicy
from lightning_mllm.processing.limits import Masks, TextLimits
from lightning_mllm.processing.marks import Boundary
from lightning_mllm.processing.processor import Processor
from tests.processing.test_chat import MARKED, UNMARKED, turns
from tests.processing.tokenizer import llama_tokenizer

IMAGE, TEXT = int(TokenKind.IMAGE), int(TokenKind.TEXT)


@dataclass(frozen=True)
class Drawn:
    """A small image of one colour."""

    colour: tuple[int, int, int]
    name: str = "drawn.png"

    def read(self, max_bytes: int) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (12, 9), self.colour).save(buffer, "PNG")
        return buffer.getvalue()


@dataclass(frozen=True)
class Halved(Drawn):
    """Black on the left."""

    colour: tuple[int, int, int] = (255, 255, 255)

    def read(self, max_bytes: int) -> bytes:
        image = Image.new("RGB", (16, 8), self.colour)
        image.paste((0, 0, 0), (0, 0, 8, 8))
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return buffer.getvalue()


@dataclass(frozen=True)
class Broken:
    name: str = "broken.png"

    def read(self, max_bytes: int) -> bytes:
        return b"not an image"


RED, BLUE = Drawn((255, 0, 0)), Drawn((0, 0, 255))


def processor(
    chat: str = "vicuna_v1",
    tokenizer: PreTrainedTokenizerFast | None = None,
    vectors: int = 3,
    max_length: int = 2048,
    image_boundary: Boundary = "none",
    masks: Masks = "strict",
    special_in_turns: bool = False,
) -> Processor:
    tokenizer = tokenizer or llama_tokenizer()
    template = load_template(chat, tokenizer)
    policy = ImagePolicy(size=8, fit="crop")
    return Processor(
        tokenizer,
        template,
        policy,
        vectors,
        max_length,
        image_boundary,
        special_in_turns=special_in_turns,
        masks=masks,
    )


def sample(*texts: str, images: tuple[Drawn | Broken, ...] = (), system: str | None = None) -> Sample:
    return Sample(id="s7", turns=turns(*texts, system=system), images=images)


def supervised(encoded: Encoded) -> list[int]:
    return encoded.labels[encoded.labels != IGNORE].tolist()


# One row


def test_a_token_across_the_border_goes_with_its_last_letter() -> None:
    used = processor()
    used.chat = ChatTemplate(name="bare", system="", user="{text}", between="d ", assistant="{text}", images="stay")
    red = used.tokenizer.get_vocab()["\u2581red"]
    assert supervised(used.encode(sample("re", "d")))[:1] == [red]
    begun = used.encode(sample("what is ", "re", "q", "yes"))
    assert red in begun.tokens.tolist() and red not in supervised(begun)


def test_a_row_in_full() -> None:
    used = processor()
    row = used.encode(sample("<image>\nwhat is it?", "a dog.", images=(RED,), system="see."))
    tokenizer = used.tokenizer
    before = tokenizer("see. USER: ")["input_ids"]
    after = tokenizer("\nwhat is it? ASSISTANT:", add_special_tokens=False)["input_ids"]
    answer = tokenizer("a dog.</s>", add_special_tokens=False)["input_ids"]
    assert before[0] == tokenizer.bos_token_id and answer[-1] == tokenizer.eos_token_id
    assert row.tokens.tolist() == [*before, *[used.image_id] * 3, *after, *answer]
    assert row.labels.tolist() == [IGNORE] * (len(before) + 3 + len(after)) + answer
    assert row.kinds.tolist() == [TEXT] * len(before) + [IMAGE] * 3 + [TEXT] * (len(after) + len(answer))
    assert (row.tokens.dtype, row.labels.dtype, row.kinds.dtype) == (torch.long, torch.long, torch.uint8)
    assert row.images.shape == (1, 3, 8, 8) and row.images[0, :, 0, 0].tolist() == [255, 0, 0]
    assert (row.id, row.prompt) == ("s7", "what is it?")


def test_a_task_may_have_a_template_of_its_own() -> None:
    own = processor("cogvlm_chat")
    for task, asks in (("vqa", "Short answer: "), ("conversation", "Answer: ")):
        asked = replace(sample("<image>What?", "A dog.", images=(RED,)), task=task)
        encoded = own.encode(asked)
        written = str(own.tokenizer.decode(encoded.tokens[encoded.kinds == TEXT]))
        assert written.endswith(f"Question: What? {asks}A dog.</s>")
        judged = own.with_answers(own.collate([own.encode(asked, generate=True)]), ["A dog."])
        assert torch.equal(judged.tokens[0], encoded.tokens) and torch.equal(judged.labels[0], encoded.labels)


def test_images_keep_their_order() -> None:
    row = processor().encode(sample("is <image> left of <image>?", "no", images=(RED, BLUE)))
    assert row.images[:, :, 0, 0].tolist() == [[255, 0, 0], [0, 0, 255]]
    assert (row.kinds == IMAGE).sum() == 6


def test_images_change_by_chance_in_training_alone() -> None:
    used, shown = processor(), sample("<image>\nwhat is it?", "a dog.", images=(Halved(),))
    used.image = ImagePolicy(size=8, fit="squash", random_flip=1.0)
    plain, mirrored = (used.encode(shown, random=random).images for random in (None, torch.Generator()))
    assert torch.equal(plain.flip(-1), mirrored) and not torch.equal(plain, mirrored)


def test_text_alone() -> None:
    row = processor().encode(sample("what is it?", "a dog."))
    assert row.images.shape == (0, 3, 8, 8) and row.images.dtype == torch.uint8
    document = Sample(id="d", turns=(Turn(role="assistant", text="there are 2 dog"),))
    row = processor("plain").encode(document)
    # All of a text is learned but the begin token.
    assert row.labels.tolist() == [IGNORE, *row.tokens[1:].tolist()]


def test_slots_hold_the_image_token_if_there_is_one() -> None:
    assert processor().image_id == processor().tokenizer.unk_token_id
    used = processor(tokenizer=llama_tokenizer(IMAGE_MARK))
    row = used.encode(sample("<image>\nq", "a", images=(RED,)))
    own = used.tokenizer.get_vocab()[IMAGE_MARK]
    assert row.tokens.eq(own).tolist() == row.kinds.eq(IMAGE).tolist() and row.tokens.eq(own).sum() == 3


def test_begin_and_end_tokens_around_an_image() -> None:
    tokenizer = llama_tokenizer("<im_start>", "<im_end>")
    row = processor(tokenizer=tokenizer, image_boundary="tokens").encode(sample("<image>\nq", "a", images=(RED,)))
    at = int((row.kinds != TEXT).nonzero()[0])
    kinds = [TokenKind.IMAGE_BEGIN, *[TokenKind.IMAGE] * 3, TokenKind.IMAGE_END]
    assert row.kinds[at : at + 5].tolist() == [int(kind) for kind in kinds]
    assert tokenizer.convert_ids_to_tokens([int(row.tokens[at]), int(row.tokens[at + 4])]) == ["<im_start>", "<im_end>"]
    with pytest.raises(ValueError, match="found no token <im_start> in the tokenizer"):
        processor(image_boundary="tokens")


@dataclass(frozen=True, kw_only=True)
class Twice(ImagePolicy):
    """Two views: the image, and its negative."""

    @property
    def num_views(self) -> int:
        return 2

    def __call__(self, image: Image.Image, random: torch.Generator | None = None) -> torch.Tensor:
        view = super().__call__(image, random)
        return torch.cat([view, 255 - view])


def test_every_view_of_an_image_has_its_slots() -> None:
    used = Processor(llama_tokenizer(), processor().chat, Twice(size=8, fit="crop"), 3, 99 * 9)
    row = used.encode(sample("<image>\nq", "a", images=(RED,)))
    assert (row.kinds == IMAGE).sum() == 6 and len(row.images) == 2
    assert used.collate([row]).num_images == 2


def test_every_view_stands_between_vectors_of_its_own() -> None:
    used = Processor(
        llama_tokenizer(), processor().chat, Twice(size=8, fit="squash"), 3, 99 * 9, image_boundary="vectors"
    )
    row = used.encode(sample("<image> or <image>\nq", "a", images=(RED, BLUE)))
    runs = [(kind, len(list(run))) for kind, run in groupby(row.kinds.tolist())]
    view = [(int(TokenKind.IMAGE_BEGIN), 1), (IMAGE, 3), (int(TokenKind.IMAGE_END), 1)]
    assert [run for run in runs if run[0] != TEXT] == view * 4
    slots = row.kinds != TEXT
    assert row.tokens[slots].eq(used.image_id).all() and row.labels[slots].eq(IGNORE).all()
    assert used.collate([row]).num_images == 4
    colours = [[255, 0, 0], [0, 255, 255], [0, 0, 255], [255, 255, 0]]
    assert row.images[:, :, 0, 0].tolist() == colours


@pytest.mark.parametrize("side", ["right", "left"])
def test_nothing_of_an_image_with_vectors_around_it_is_cut(side: Literal["right", "left"]) -> None:
    shown = sample("<image>\nq", "a dog.", images=(RED,), system="")
    whole = processor(image_boundary="vectors").encode(shown)
    end = int((whole.kinds == TokenKind.IMAGE_END).nonzero()[0])
    for limit in range(1, end + 1):
        with pytest.raises(ValueError, match="cutting the end would cut an image"):
            processor(image_boundary="vectors", max_length=limit).encode(shown)
    used = processor(image_boundary="vectors")
    used.text_limits = TextLimits(prompt=2, cut=side)
    cut = used.encode(shown)
    assert cut.notes == ("cut",) and cut.kinds[cut.kinds != TEXT].tolist() == whole.kinds[whole.kinds != TEXT].tolist()


def test_generating_ends_where_the_answer_begins() -> None:
    used = processor()
    conversation = replace(sample("<image>\nq", "a dog.", images=(RED,)), references=("a dog.",), task="vqa")
    trained, asked = used.encode(conversation), used.encode(conversation, generate=True)
    assert asked.tokens.tolist() == trained.tokens[trained.labels == IGNORE].tolist()
    assert not supervised(asked) and (asked.references, asked.task) == (("a dog.",), "vqa")
    unanswered = replace(conversation, turns=conversation.turns[:-1])
    assert used.encode(unanswered, generate=True).tokens.tolist() == asked.tokens.tolist()


@pytest.mark.parametrize("jinja", [MARKED, UNMARKED])
def test_a_tokenizers_own_template_gives_its_own_tokens(jinja: str) -> None:
    tokenizer = llama_tokenizer("<|end|>")
    tokenizer.chat_template = jinja
    messages = [{"role": "user", "content": "what is it?"}, {"role": "assistant", "content": "a dog."}]
    row = processor("tokenizer", tokenizer).encode(sample("what is it?", "a dog."))
    theirs = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=jinja == MARKED)
    assert row.tokens.tolist() == theirs["input_ids"]  # pyright: ignore
    assert row.tokens.tolist().count(tokenizer.bos_token_id or 0) == 1
    assert str(tokenizer.decode(supervised(row))).strip() == "a dog.<|end|>"
    if jinja == MARKED:
        assert [int(label != IGNORE) for label in row.labels.tolist()] == theirs["assistant_masks"]  # pyright: ignore


# What is refused, what is cut


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sample("<image> and <image>", "a", images=(RED,)), "found 2 <image> marks for 1 images"),
        (lambda: sample("q", "a", images=(RED,)), "found 0 <image> marks for 1 images"),
        (lambda: sample("<image>", "a"), "found 1 <image> marks for 0 images"),
        (lambda: sample("what?"), "tokens and none of them learned, expected a non-empty answer"),
        (lambda: Sample(id="s7", turns=()), "tokens and none of them learned"),
        (lambda: Sample(id="s7", turns=(Turn(role="human", text="q"),)), "found role 'human'"),  # pyright: ignore
    ],
)
def test_refused_with_the_samples_id(make: Callable[[], Sample], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^sample 's7': .*{message}"):
        processor().encode(make())


def test_a_bad_image_is_an_image_error_with_both_names() -> None:
    with pytest.raises(ImageError, match=r"^sample 's7': broken\.png: found bytes of no known image format"):
        processor().encode(sample("<image>", "a", images=(Broken(),)))
    used = processor()
    used.limits = ImageLimits(max_pixels=9)
    with pytest.raises(ImageError, match="12 x 9 = 108 pixels, expected at most 9"):
        used.encode(sample("<image>", "a", images=(RED,)))


def test_a_lone_token_teaches_nothing() -> None:
    tokenizer = llama_tokenizer()
    used = processor("plain", tokenizer)
    used.prefix = []
    used.chat = replace(used.chat, assistant="{text}")
    with pytest.raises(ValueError, match="found 1 tokens and none of them learned"):
        used.encode(Sample(id="s", turns=(Turn(role="assistant", text="dog"),)))


def test_only_the_end_of_an_answer_is_cut() -> None:
    conversation = sample("<image>\nq", "there are " + "many " * 40, images=(RED,), system="")
    whole = processor().encode(conversation)
    used = processor(max_length=len(whole.tokens) - 9)
    cut = used.encode(conversation)
    assert cut.notes == (f"overlong: found {len(whole.tokens)} tokens, expected at most {len(whole.tokens) - 9}",)
    for name in ("tokens", "labels", "kinds"):
        assert torch.equal(getattr(cut, name), getattr(whole, name)[:-9])
    used = processor(max_length=len(whole.tokens))
    again = used.encode(conversation)
    assert torch.equal(again.tokens, whole.tokens) and not again.notes


def test_no_length_cuts_an_image_or_leaves_nothing_to_learn() -> None:
    conversation = sample("<image>\nq", "a dog.", "and <image>?", "no.", images=(RED, BLUE), system="")
    whole = processor().encode(conversation)
    last_image = int((whole.kinds == IMAGE).nonzero()[-1])
    kept = 0
    for limit in range(1, len(whole.tokens)):
        try:
            row = processor(max_length=limit).encode(conversation)
        except ValueError as error:
            assert f"sample 's7': found {len(whole.tokens)} tokens, expected at most {limit}: cutting" in str(error)
            assert limit <= last_image
        else:
            assert (row.kinds == IMAGE).sum() == 6 and supervised(row)
            kept += 1
    assert kept == len(whole.tokens) - last_image - 1
    asked = sample("q " * 40, "a dog.", system="")
    with pytest.raises(ValueError, match="expected at most 60: cutting the end would leave no answer"):
        processor(max_length=60).encode(asked)
    with pytest.raises(ValueError, match=r"found a prompt of .* tokens, expected at most 60"):
        processor(max_length=60).encode(asked, generate=True)


# Batches


@pytest.mark.parametrize("padding", ["right", "left"])
def test_collate(padding: str) -> None:
    used = processor()
    rows = [
        used.encode(sample("<image>\nq", "a", images=(RED,))),
        used.encode(replace(sample("what is the colour of it?", "red, there are many"), question_type="colour")),
    ]
    assert padding in ("right", "left")
    batch = used.collate(rows, padding=padding)
    longest = max(len(row.tokens) for row in rows)
    assert batch.tokens.shape == batch.labels.shape == batch.kinds.shape == batch.segments.shape == (2, longest)
    assert batch.kinds.dtype == torch.uint8 and batch.num_images == 1 and batch.images.shape == (1, 3, 8, 8)
    for i, row in enumerate(rows):
        real = slice(0, len(row.tokens)) if padding == "right" else slice(longest - len(row.tokens), longest)
        rest = torch.ones(longest, dtype=torch.bool)
        rest[real] = False
        for name in ("tokens", "labels", "kinds"):
            assert torch.equal(getattr(batch, name)[i, real], getattr(row, name))
        assert batch.segments[i, real].eq(1).all() and batch.segments[i, rest].eq(0).all()
        assert batch.positions[i, real].tolist() == list(range(len(row.tokens)))
        assert batch.positions[i, rest].eq(0).all()
        assert batch.tokens[i, rest].eq(used.pad_id).all() and batch.labels[i, rest].eq(IGNORE).all()
        assert batch.kinds[i, rest].eq(TEXT).all()
    assert batch.ids == ["s7", "s7"] and batch.prompts == ["q", "what is the colour of it?"]
    assert batch.references == [(), ()] and batch.tasks == ["", ""] and batch.targets is None
    assert batch.question_types == ["", "colour"]


def test_a_text_batch_carries_a_blank_image() -> None:
    used = processor()
    batch = used.collate([used.encode(sample("q", "a")), used.encode(sample("r", "b"))])
    assert batch.num_images == 0
    assert batch.images.shape == (1, 3, 8, 8) and not batch.images.any() and batch.images.dtype == torch.uint8


def test_decoder_tokens_are_padded_on_the_right() -> None:
    used = processor()
    rows = [replace(used.encode(sample("q", "a")), targets=torch.tensor(each)) for each in ([5, 6, 7], [8])]
    targets = used.collate(rows, padding="left").targets
    assert targets is not None and targets.tolist() == [[5, 6, 7], [8, IGNORE, IGNORE]]


def test_padding_takes_the_best_token_there_is() -> None:
    tokenizer = llama_tokenizer("<pad>", pad_token="<pad>")
    assert processor(tokenizer=tokenizer).pad_id == tokenizer.convert_tokens_to_ids("<pad>")
    assert processor().pad_id == 0
    tokenizer = llama_tokenizer()
    tokenizer.unk_token = None
    assert processor(tokenizer=tokenizer).pad_id == tokenizer.eos_token_id
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="found a tokenizer without pad, unk and eos tokens"):
        Processor(tokenizer, load_template("plain", tokenizer), ImagePolicy(size=8, fit="crop"), 1, 9)


# Back to text


@pytest.mark.parametrize("form", [list, torch.tensor])
def test_decode_is_the_answer(form: Callable[[list[int]], list[int] | torch.Tensor]) -> None:
    used = processor()
    said = "there are 2 caf\u00e9 , red ."
    assert used.decode(form(supervised(used.encode(sample("q", said))))) == said
    assert used.decode(form([])) == ""


def test_decode_stops_where_the_template_ends_an_answer() -> None:
    for chat, rest in (("plain", "a dog.\nred red"), ("llava_v0", "a dog.\n### Human: and")):
        used = processor(chat)
        assert used.decode(used.tokenizer(rest)["input_ids"]) == "a dog."


def test_a_processor_travels_to_workers() -> None:
    used = processor()
    row, twin = (each.encode(sample("q", "a dog.")) for each in (used, pickle.loads(pickle.dumps(used))))
    assert torch.equal(row.tokens, twin.tokens)


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="found max_length 0 and vectors_per_image 3, expected at least 1 and 0"):
        processor(max_length=0)
