"""BLIP-2's first stage: the numbers of transformers, and laws of its three losses."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from lightning_mllm.architectures.blip2_representation import Blip2Representation
from lightning_mllm.connectors.alignment import AlignmentConnector, LossWeights, Pairs, nearest_query
from lightning_mllm.connectors.qformer_connector import QFormerConnector
from lightning_mllm.contracts import Sample, Term, Turn
from lightning_mllm.language.generation import Decoding
from lightning_mllm.training.initialise import build_empty
from lightning_mllm.training.reduction import step_weights
from lightning_mllm.training.stage import StageSettings
from lightning_mllm.vision.eva import EvaTower
from tests.architectures.blip2s import CLOSE, built, collated, eva, same_gradients, theirs
from tests.architectures.samples import Noise, gradients
from tests.interop.tables import keys


def captioned(text: str, image: int) -> Sample:
    turns = (Turn(role="user", text="<image>"), Turn(role="assistant", text=text))
    return Sample(id=text, turns=turns, images=(Noise(image),))


FOUR = (
    captioned("a cube", 1),
    captioned("two red balls on a table", 2),
    captioned("the sky", 3),
    captioned("three cylinders", 4),
)
SHARED = (*FOUR, captioned("one more ball", 2), captioned("a box", 1))
"""Two images have two texts."""


@pytest.fixture
def module() -> Blip2Representation:
    return built(Blip2Representation)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Any:
    ours = built(Blip2Representation, **eva())
    return ours, theirs(ours, tmp_path_factory.mktemp("theirs"))


@pytest.mark.parametrize("count", [1, 4])
def test_parity_with_transformers(pair: Any, count: int) -> None:
    ours, model = pair
    batch = collated(ours, *FOUR[:count])
    inputs = {
        "pixel_values": (batch.images / 255 - ours.net.vision.mean) / ours.net.vision.std,
        "input_ids": batch.tokens,
        "attention_mask": (batch.segments > 0).long(),
    }
    contrast = model(**inputs)
    matched = model(**inputs, use_image_text_matching_head=True).logits_per_image
    pairs = ours.net.pairs(batch)
    images = F.normalize(ours.net.heads.vision_proj(ours.net.qformer.encode_images(pairs.visual)), dim=-1)
    texts = ours.net.text_vectors(pairs.tokens, pairs.real)
    assert_close(pairs.visual, contrast.vision_model_output.last_hidden_state, **CLOSE)
    assert_close(images, contrast.image_embeds, **CLOSE)
    assert_close(texts, contrast.text_embeds, **CLOSE)
    similarity = nearest_query(images, texts)
    assert_close(similarity, contrast.logits_per_image, **CLOSE)
    found = ours.net.pair_logits(batch)
    assert_close(found, torch.cat([similarity.diagonal()[:, None], matched], 1), **CLOSE)
    assert_close(ours.net.match_logits(pairs.visual, pairs.tokens, pairs.real), matched, **CLOSE)

    weight = torch.randn_like(found)
    expected = torch.cat([contrast.logits_per_image.diagonal()[:, None], matched], 1)
    ours.zero_grad()
    model.zero_grad()
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    same_gradients(ours, model)


def test_one_pass_with_an_explicit_mask_gives_the_same_losses_and_gradients(module: Blip2Representation) -> None:
    """Fig. 2 of the paper: three masks over queries and text, instead of passes of their own."""
    batch = collated(module, *FOUR)
    torch.manual_seed(5)
    parts = {name: term.mean.detach() for name, term in module(batch).terms.items()}
    pairs, queries = module.net.pairs(batch), module.net.qformer.queries.shape[1]
    rows, length = pairs.tokens.shape
    size = queries + length
    is_query = torch.arange(size) < queries
    columns = torch.cat([torch.ones(rows, queries, dtype=torch.bool), pairs.real], 1)[:, None].expand(-1, size, -1)
    apart = (is_query[:, None] == is_query[None]) & columns
    causal = (torch.ones(size, size, dtype=torch.bool).tril() | is_query[None]) & (~is_query[:, None] | is_query[None])

    x = module.net.qformer.masked(pairs.visual, pairs.tokens, pairs.real, apart)
    images = F.normalize(module.net.heads.vision_proj(x[:, :queries]), dim=-1)
    texts = F.normalize(module.net.heads.text_proj(x[:, queries]), dim=-1)

    def compared(images: Tensor, texts: Tensor) -> Tensor:
        return torch.einsum("nqc,mc->nmq", images, texts).amax(-1) / module.net.heads.temperature

    right = torch.arange(rows)
    # The other side has no gradient.
    sides = (compared(images, texts.detach()), compared(images.detach(), texts).T)
    contrast = torch.stack([F.cross_entropy(each, right, label_smoothing=0.1) for each in sides]).mean()
    assert_close(parts["contrast"], contrast, **CLOSE)
    similarity = compared(images, texts)

    torch.manual_seed(5)
    own = torch.eye(rows, dtype=torch.bool)
    image = similarity.T.masked_fill(own, -torch.inf).softmax(1).multinomial(1)[:, 0]
    text = similarity.masked_fill(own, -torch.inf).softmax(1).multinomial(1)[:, 0]
    # Each text with another image, each image with another text, and each pair.
    chosen = torch.cat([torch.stack([right, right], 1), torch.stack([image, right], 1), torch.stack([right, text], 1)])
    seen, read = chosen.T
    x = module.net.qformer.masked(pairs.visual[seen], pairs.tokens[read], pairs.real[read], columns[read])
    logits = module.net.heads.itm_head(x[:, :queries]).mean(1)
    matching = F.cross_entropy(logits, (torch.arange(3 * rows) < rows).long())
    assert_close(parts["matching"], matching, **CLOSE)

    tokens = pairs.tokens.clone()
    tokens[:, 0] = module.net.decoder_start
    x = module.net.qformer.masked(pairs.visual, tokens, pairs.real, causal & columns)[:, queries:]
    words = module.net.word_logits(x[:, :-1]).flatten(0, 1)
    labels = tokens[:, 1:].masked_fill(~pairs.real[:, 1:], -100).flatten()
    captioning = F.cross_entropy(words, labels, label_smoothing=0.1)
    assert_close(parts["captioning"], captioning, **CLOSE)
    expected = torch.autograd.grad(contrast + matching + captioning, list(module.parameters()))
    torch.manual_seed(5)
    loss = module(batch).loss
    assert_close(loss, contrast + matching + captioning, **CLOSE)
    for (name, _), gradient, one in zip(
        module.net.named_parameters(), torch.autograd.grad(loss, list(module.parameters())), expected, strict=True
    ):
        assert_close(gradient, one, atol=1e-4, rtol=1e-4, msg=name)


def test_a_step_encodes_its_images_once(module: Blip2Representation) -> None:
    """The tower; and what the queries look up in an image, for three passes of its pair and as a hard negative."""
    batch = collated(module, *FOUR)
    seen: Counter[str] = Counter()
    counted = {"vision": module.net.vision} | {
        f"{i}.{name}": getattr(layer.cross_attention, name)  # pyright: ignore[reportAttributeAccessIssue]
        for i, layer in enumerate(module.net.qformer.layers)
        for name in ("key", "value")
        if layer.cross_attention is not None
    }
    for name, part in counted.items():
        part.register_forward_hook(lambda *given, name=name: seen.update({name: len(given[1][0])}))
    module(batch).loss.backward()
    assert len(counted) == 5 and seen == dict.fromkeys(counted, 4)


def chosen(module: Blip2Representation, pairs: Pairs, similarity: Tensor, other: Tensor) -> tuple[Any, Any]:
    """For each pair the negative image of its text and the negative text of its image, by place in the batch."""
    found: dict[str, Any] = {}

    def look(visual: Any, tokens: Tensor, real: Tensor) -> Tensor:
        found.update(visual=visual, tokens=tokens)
        return torch.zeros(len(tokens), 2)

    module.net.match_logits = look  # pyright: ignore[reportAttributeAccessIssue]
    known = module.net.qformer.encode_images_with_cache(pairs.visual)[1]
    module.net.matching(similarity, other, pairs, known)
    count = len(pairs.tokens)
    (own, times), (others, images) = found["visual"]
    assert own is known.images and others is known.images and times == 2
    texts = [
        next(i for i in range(count) if torch.equal(pairs.tokens[i], t)) for t in found["tokens"][count : 2 * count]
    ]
    assert torch.equal(found["tokens"][:count], pairs.tokens) and torch.equal(found["tokens"][-count:], pairs.tokens)
    return images.tolist(), texts


@pytest.mark.parametrize("soft", [False, True])
def test_a_negative_is_never_of_the_pair_itself(module: Blip2Representation, soft: bool) -> None:
    module.net.soft_targets = soft
    pairs = module.net.pairs(collated(module, *SHARED))
    same = {0: {0, 5}, 1: {1, 4}, 2: {2}, 3: {3}, 4: {1, 4}, 5: {0, 5}}
    drawn: Counter[tuple[int, int]] = Counter()
    uniform = torch.zeros(6, 6)
    for _ in range(60):
        images, texts = chosen(module, pairs, uniform, uniform)
        drawn.update([*enumerate(texts), *enumerate(images)])
    excluded = {(i, j) for i in range(6) for j in (same[i] if soft else {i})}
    assert not excluded & set(drawn)
    assert len(drawn) == 36 - len(excluded), "any other may be drawn"


def test_negatives_follow_the_similarities(module: Blip2Representation) -> None:
    pairs = module.net.pairs(collated(module, *FOUR))
    images_to_texts, texts_to_images = torch.zeros(4, 4), torch.zeros(4, 4)
    for i in range(4):
        images_to_texts[i, (i + 1) % 4] = texts_to_images[i, (i + 2) % 4] = 50.0
    images, texts = chosen(module, pairs, images_to_texts, texts_to_images)
    assert texts == [1, 2, 3, 0] and images == [2, 3, 0, 1]


def test_a_caption_sees_the_image_and_what_is_already_written(module: Blip2Representation) -> None:
    pairs = module.net.pairs(collated(module, *FOUR))
    _, kept = module.net.qformer.encode_images_with_cache(pairs.visual)
    before = module.net.qformer.decode_text(pairs.tokens, pairs.real, kept)
    changed = pairs.tokens.clone()
    changed[:, 4] += 1
    after = module.net.qformer.decode_text(changed, pairs.real, kept)
    assert torch.equal(before[:, :4], after[:, :4]) and (before[:, 4:] != after[:, 4:]).any(-1)[:, 0].all()
    _, other = module.net.qformer.encode_images_with_cache(pairs.visual + torch.randn_like(pairs.visual))
    assert (module.net.qformer.decode_text(pairs.tokens, pairs.real, other) != before).any(-1).all()


def test_padding_changes_nothing(module: Blip2Representation) -> None:
    together = module.net.pair_logits(collated(module, *FOUR))
    for i, each in enumerate(FOUR):
        assert_close(together[i : i + 1], module.net.pair_logits(collated(module, each)), **CLOSE)


def test_all_texts_of_an_image_are_right_answers(module: Blip2Representation) -> None:
    module.net.soft_targets = True
    pairs = module.net.pairs(collated(module, *SHARED))
    assert pairs.own[0].tolist() == [True, False, False, False, False, True]
    module.net.soft_targets = False
    assert torch.equal(module.net.pairs(collated(module, *SHARED)).own, torch.eye(6, dtype=torch.bool))


EXPECTED = {
    "representation": {"ln_vision", "qformer", "heads"},
    "retrieval": {"vision", "ln_vision", "qformer", "heads"},
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_stage_trains_what_is_published_and_nothing_else(name: str) -> None:
    module = Blip2Representation.tiny(stage=StageSettings(name=name))
    module.configure_model()
    trained = {n for n, p in module.net.named_parameters() if p.requires_grad}
    assert {n.split(".")[0] for n in trained} == EXPECTED[name]
    assert all(part.training == (part_name in EXPECTED[name]) for part_name, part in module.net.named_children())
    found = gradients(module, collated(module, *FOUR))
    assert set(found) == trained
    # The keys' bias moves all logits of a row alike.
    silent = {n for n in trained if not found[n].any() and not n.endswith("key.bias")}
    assert silent == set()


def test_greedy_captions_are_the_likeliest_next_words(module: Blip2Representation) -> None:
    batch = collated(module, *FOUR, generate=True)
    with torch.no_grad():
        rows = module.generate(batch, Decoding(max_new_tokens=5))
        for i, row in enumerate(rows):
            alone = module.generate(collated(module, FOUR[i], generate=True), Decoding(max_new_tokens=5))
            assert alone == [row] and len(row) <= 5
        visual = module.net.encode_images(batch)
        _, kept = module.net.qformer.encode_images_with_cache(visual)
        first = module.net.qformer.decode_text(
            torch.full((4, 1), module.net.decoder_start), torch.ones(4, 1, dtype=torch.bool), kept
        )
        assert [row[0] for row in rows if row] == [
            token
            for token, row in zip(module.net.word_logits(first[:, 0]).argmax(-1).tolist(), rows, strict=True)
            if row
        ]
    with pytest.raises(ValueError, match="found 3 beams, expected greedy captions"):
        module.generate(batch, Decoding(num_beams=3))


def test_retrieval_compares_as_the_losses_do(module: Blip2Representation) -> None:
    module.net.rerank = 2
    batch = collated(module, *FOUR)
    with torch.no_grad():
        images, texts = module.embed_images(batch), module.embed_texts([str(each.turns[1].text) for each in FOUR])
        expected = module.net.pair_logits(batch)
        assert_close(module.similarity(images, texts).diagonal(), expected[:, 0], **CLOSE)
        assert_close(module.match(images, texts, torch.arange(4)), expected[:, 2], **CLOSE)
        images = {name: tensor[[2, 0]] for name, tensor in images.items()}
        some = {name: tensor[[0, 2, 0]] for name, tensor in texts.items()}
        assert_close(module.match(images, some, torch.tensor([1, 0, 1])), expected[[0, 2, 0], 2], **CLOSE)


def test_retrieval_reads_longer_texts_than_training() -> None:
    """Released code: 35 tokens, where 32 are learned."""
    module = Blip2Representation.tiny(max_length=12, retrieval_length=15)
    module.configure_model()
    text = "a cube beside another cube"
    with torch.no_grad():
        side = module.embed_texts([text, "a"])
    assert side["tokens"].shape == (2, 15) and bool(side["real"][0].all())
    assert len(module.processor.encode(Sample(id="t", turns=(Turn(role="assistant", text=text),))).tokens) == 12
    assert Blip2Representation.tiny().search.max_length == Blip2Representation.tiny().processor.max_length


def test_pairs_that_are_none_are_refused(module: Blip2Representation) -> None:
    alone = Sample(id="alone", turns=(Turn(role="assistant", text="a cube"),))
    with pytest.raises(ValueError, match="found 1 images for 2 texts, expected one each"):
        module(collated(module, FOUR[0], alone))
    with pytest.raises(ValueError, match="found no other image among 1 pairs"):
        module(collated(module, FOUR[0]))


def test_published_sizes() -> None:
    module = Blip2Representation(vision=EvaTower(weights=None), qformer=QFormerConnector(), tokenizer="")
    counts = {
        name: sum(p.numel() for p in build_empty(spec).parameters())
        for name, spec in module.components.items()
        if name != "vision"
    }
    assert counts["ln_vision"] == 2_816
    assert counts["qformer"] == 185_660_160 + 32 * 768
    assert counts["heads"] == 622_651 + 2 * 196_864 + 1_538 + 1
    assert sum(counts.values()) == 186_705_470
    assert isinstance(module.components["heads"], AlignmentConnector)


def test_a_file_in_the_names_of_lavis_is_a_source(tmp_path: Path) -> None:
    ours = built(Blip2Representation, **eva())
    state = dict(keys(ours, "lavis").to_theirs(ours.state_dict().items()))
    table = state["Qformer.bert.embeddings.word_embeddings.weight"]
    state["Qformer.cls.predictions.decoder.weight"] = table
    state["Qformer.cls.predictions.decoder.bias"] = state["Qformer.cls.predictions.bias"]
    state["Qformer.bert.embeddings.position_ids"] = torch.arange(128)[None]
    assert state["temp"].shape == () and "visual_encoder.blocks.1.attn.q_bias" in state
    torch.save({"model": state, "epoch": 9}, tmp_path / "blip2_pretrained.pth")
    again = Blip2Representation.tiny(
        **eva(), stage=StageSettings(name="representation", init_from={str(tmp_path / "blip2_pretrained.pth"): 1.0})
    )
    again.configure_model()
    assert set(again.provenance.values()) == {"stage.init_from"}
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in ours.state_dict().items())


def test_each_loss_has_a_weight_and_one_of_0_is_reported_alone() -> None:
    torch.manual_seed(0)
    plain = Blip2Representation.tiny(stage=StageSettings(name="representation"))
    weighed = Blip2Representation.tiny(
        stage=StageSettings(name="representation"), loss_weights=LossWeights(contrast=0.5, matching=0, captioning=2)
    )
    for each in (plain, weighed):
        each.configure_model()
    weighed.load_state_dict(plain.state_dict())
    outputs = []
    for each in (plain, weighed):
        torch.manual_seed(5)
        outputs.append(each.eval()(collated(each, *FOUR)))
    parts, found = ({name: term.mean.detach() for name, term in each.terms.items()} for each in outputs)
    for name, value in parts.items():
        assert_close(found[name], value, **CLOSE)
    assert_close(outputs[0].loss.detach(), sum(parts.values()), **CLOSE)
    assert_close(outputs[1].loss.detach(), 0.5 * parts["contrast"] + 2 * parts["captioning"], **CLOSE)
    assert plain.net.unused_parameters() == set() and weighed.net.unused_parameters() == {
        "heads.itm_head.weight",
        "heads.itm_head.bias",
    }
    with pytest.raises(ValueError, match=r"loss_weights.matching: found -1, expected"):
        LossWeights(matching=-1)
    with pytest.raises(ValueError, match=r"loss_weights: found 0 for all"):
        LossWeights(contrast=0, matching=0, captioning=0)


@pytest.mark.parametrize("reduction", ["token_mean", "micro_batch_mean", "sample_mean"])
def test_captions_are_learned_alike_however_a_batch_is_cut(reduction: Any, tmp_path: Path) -> None:
    """Its items are tokens, those of the other two losses pairs."""
    texts = ("A cube.", "Two cubes, one of them on a table beside a window.", "A cat.", "No.")
    rows = [captioned(text, number) for number, text in enumerate(texts)]
    found = []
    for cut in (4, 2, 1):
        torch.manual_seed(0)
        module = Blip2Representation.tiny(stage=StageSettings(name="representation"))
        module.configure_model()
        module.eval()
        batches = [collated(module, *rows[k : k + cut]) for k in range(0, 4, cut)]
        weights = step_weights(batches, reduction, 2, torch.device("cpu"))
        total = torch.zeros(())
        for batch, weight in zip(batches, weights, strict=True):
            pairs = module.net.pairs(batch)
            losses, tokens = module.net.captioning(pairs, module.net.qformer.encode_images_with_cache(pairs.visual)[1])
            assert torch.equal(tokens, weight.tokens)
            total = total + (weight.of(Term(losses=losses, tokens=tokens)) * losses).sum()
        found.append((total, *torch.autograd.grad(total, [module.net.heads.bias, module.net.qformer.queries])))
    for other in found[1:]:
        for one, same in zip(found[0], other, strict=True):
            assert_close(same, one, atol=1e-5, rtol=1e-4)
