from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss
from safetensors.torch import save_file
from torch.testing import assert_close

from lightning_mllm.architectures.clip import TINY, ClipPretraining
from lightning_mllm.contracts import Sample, Turn
from lightning_mllm.training.stage import StageSettings
from lightning_mllm.vision.clip import OpenClipModel
from tests.architectures.samples import TEXT, Noise, batch_of, gradients
from tests.interop.tables import keys

CAPTIONS = ("A red cube.", "Two spheres on a table.", "A cone.")
PAIRS = [
    Sample(
        id=str(i),
        turns=(Turn(role="user", text="<image>"), Turn(role="assistant", text=caption)),
        images=(Noise(i),),
        references=(caption, "another"),
    )
    for i, caption in enumerate(CAPTIONS)
]
END = 2


def built(stage: str | None = None) -> ClipPretraining:
    module = ClipPretraining.tiny(stage=None if stage is None else StageSettings(name=stage))
    module.configure_model()
    return module.eval()


def test_the_loss_is_that_of_open_clip_reading_our_files(tmp_path: Path) -> None:
    module = built()
    save_file(
        dict(keys(module, "open_clip").to_theirs(module.state_dict().items())),
        tmp_path / "open_clip_model.safetensors",
    )
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": TINY["clip"].config, "preprocess_cfg": {}})
    )
    theirs = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    assert isinstance(theirs, open_clip.CLIP)

    tokenizer = module.processor.tokenizer
    text = torch.full((3, 64), tokenizer.pad_token_id)
    for row, caption in zip(text, CAPTIONS, strict=True):
        ids = torch.tensor([*tokenizer(caption)["input_ids"], END])
        row[: len(ids)] = ids
    batch = batch_of(module, *PAIRS)
    pixels = (batch.images / 255 - module.net.mean) / module.net.std
    with torch.no_grad():
        features = theirs.encode_image(pixels, normalize=True), theirs.encode_text(text, normalize=True)
        assert_close(module.net.encode_images(batch), features[0], atol=1e-6, rtol=0)
        assert_close(module.net.encode_texts(batch.tokens, batch.segments), features[1], atol=1e-6, rtol=0)
        output = module(batch)
        assert_close(output.loss, ClipLoss()(*features, theirs.logit_scale.exp()), atol=1e-5, rtol=0)
    assert output.count == 3


@pytest.mark.parametrize("text", [{}, {"proj_bias": True}, {"proj_type": "none", "width": 16}], ids=str)
def test_captions_are_read_as_open_clip_reads_them_padded(text: dict[str, object]) -> None:
    known = TINY["clip"].config
    module = ClipPretraining.tiny(clip=OpenClipModel(config={**known, "text_cfg": {**known["text_cfg"], **text}}))
    module.configure_model()
    batch = batch_of(module.eval(), *PAIRS)
    padded = torch.full((len(PAIRS), 64), END)
    for row, tokens, kept in zip(padded, batch.tokens, (batch.segments > 0).sum(1) - 1, strict=True):
        row[:kept] = tokens[:kept]
    with torch.no_grad():
        expected = module.net.clip.encode_text(padded, normalize=True)
        assert_close(module.net.encode_texts(batch.tokens, batch.segments), expected, atol=1e-6, rtol=0)


def test_a_text_tower_that_sees_its_padding_is_refused() -> None:
    known = TINY["clip"].config
    clip = OpenClipModel(config={**known, "text_cfg": {**known["text_cfg"], "no_causal_mask": True}})
    with pytest.raises(ValueError, match=r"found text_cfg\.no_causal_mask, expected a causal text tower"):
        ClipPretraining.tiny(clip=clip)


def test_images_of_one_caption_are_all_its_own() -> None:
    module = built()
    twins = [replace(PAIRS[0], id="twin", images=(Noise(7),)), *PAIRS]
    batch = batch_of(module, *twins)
    with torch.no_grad():
        output = module(batch)
        logits = (
            module.net.clip.logit_scale.exp()
            * module.net.encode_images(batch)
            @ module.net.encode_texts(batch.tokens, batch.segments).T
        )
    targets = torch.tensor([[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    expected = -(targets * logits.log_softmax(1) + targets * logits.T.log_softmax(1)).sum(1).mean() / 2
    assert_close(output.loss, expected, atol=1e-6, rtol=0)
    hits = [targets[row, place] > 0 for row, place in enumerate(logits.argmax(1).tolist())]
    assert output.terms["accuracy"].mean == pytest.approx(sum(hits) / 4)


def test_accuracy_and_answers_are_retrieval_among_the_batch() -> None:
    module = built()
    batch, asked = batch_of(module, *PAIRS), batch_of(module, *PAIRS, generate=True)
    with torch.no_grad():
        nearest = (
            (module.net.encode_images(batch) @ module.net.encode_texts(batch.tokens, batch.segments).T)
            .argmax(1)
            .tolist()
        )
        hits = sum(i == place for i, place in enumerate(nearest))
        assert module(batch).terms["accuracy"].mean == pytest.approx(hits / 3)
        assert module.answers(asked) == [CAPTIONS[i] for i in nearest]


def test_padding_changes_nothing() -> None:
    module = built()
    with torch.no_grad():
        one = batch_of(module, PAIRS[0])
        both = batch_of(module, PAIRS[0], PAIRS[1])
        assert_close(
            module.net.encode_texts(both.tokens, both.segments)[0],
            module.net.encode_texts(one.tokens, one.segments)[0],
            atol=1e-6,
            rtol=0,
        )


def test_the_temperature_is_bounded() -> None:
    module = built()
    batch = batch_of(module, *PAIRS)
    with torch.no_grad():
        module.net.clip.logit_scale.fill_(10.0)
        logits = 100 * module.net.encode_images(batch) @ module.net.encode_texts(batch.tokens, batch.segments).T
        own = torch.arange(3)
        expected = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        assert_close(module(batch).loss, expected, atol=1e-4, rtol=0)


def test_everything_is_trained_and_it_learns() -> None:
    module = built("contrast")
    batch = batch_of(module, *PAIRS)
    found = gradients(module, batch)
    assert set(found) == {name for name, _ in module.net.named_parameters()}
    assert all((gradient != 0).any() for gradient in found.values())
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        module(batch).loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert module(batch).terms["accuracy"].mean == 1
        assert module.answers(batch_of(module, *PAIRS, generate=True)) == list(CAPTIONS)


def test_pairs_are_needed() -> None:
    module = built()
    alone = replace(TEXT, turns=(Turn(role="assistant", text="A cube."),))
    with pytest.raises(ValueError, match="found 1 images for 2 captions"):
        module(batch_of(module, PAIRS[0], alone))


def test_a_text_tower_that_reads_at_another_token_is_refused() -> None:
    def changed(**settings: object) -> OpenClipModel:
        config = TINY["clip"].config
        return OpenClipModel(config={**config, "text_cfg": {**config["text_cfg"], **settings}})

    with pytest.raises(ValueError, match=r"at token 5 \(pool_type eos\), expected the tokenizer's end token 2"):
        ClipPretraining.tiny(clip=changed(eos_id=5))
    with pytest.raises(ValueError, match=r"at token 258 \(pool_type argmax\)"):
        ClipPretraining.tiny(clip=changed(pool_type="argmax"))
    with pytest.raises(ValueError, match="found 259 tokens, expected at most 100"):
        ClipPretraining.tiny(clip=changed(vocab_size=100))
