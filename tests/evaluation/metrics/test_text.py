"""What all scores share."""

from __future__ import annotations

import pickle

import pytest

from lightning_mllm.evaluation.metrics import Bleu, CiderD, ExactMatch, PopeScores, RougeL, TextMetric, VqaAccuracy

# torchmetrics warns where compute comes before update; here that is what is tested.
pytestmark = pytest.mark.filterwarnings("ignore:The ``compute`` method")

KINDS = [Bleu, CiderD, ExactMatch, PopeScores, RougeL, VqaAccuracy]
ANSWERS = ["yes", "no", "yes it is", "no dogs"]
REFERENCES = [("yes",), ("yes",), ("no",), ("no",)]


@pytest.mark.parametrize("kind", KINDS)
def test_updates_add_up_and_reset_forgets(kind: type[TextMetric]) -> None:
    whole, parts = kind(), kind()
    whole.update(ANSWERS, REFERENCES)
    for answer, reference in zip(ANSWERS, REFERENCES, strict=True):
        parts.update([answer], [reference])
    assert whole.compute() == parts.compute()
    assert list(whole.compute()) == list(kind.names)
    assert pickle.loads(pickle.dumps(whole)).compute() == whole.compute()
    parts.reset()
    with pytest.raises(ValueError, match="no answer to score"):
        parts.compute()


@pytest.mark.parametrize("kind", KINDS)
def test_calling_scores_the_batch_and_keeps_it(kind: type[TextMetric]) -> None:
    called, updated, batch = kind(), kind(), kind()
    called.update(ANSWERS[:2], REFERENCES[:2])
    batch.update(ANSWERS[2:], REFERENCES[2:])
    updated.update(ANSWERS, REFERENCES)
    assert called(ANSWERS[2:], REFERENCES[2:]) == batch.compute()
    assert called.compute() == updated.compute()


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_scored_is_refused(kind: type[TextMetric]) -> None:
    with pytest.raises(ValueError, match="1 answers but 2 references"):
        kind().update(["a"], [("yes",), ("no",)])
    with pytest.raises(ValueError, match="reference"):
        kind().update(["a"], [()])


@pytest.mark.parametrize("kind", KINDS)
def test_means_are_the_means_of_their_items(kind: type[TextMetric]) -> None:
    metric = kind()
    metric.update(ANSWERS, REFERENCES)
    if metric.is_mean:
        items = metric.per_item()
        assert float(metric.compute()[kind.names[0]]) == pytest.approx(sum(items) / len(items))
    else:
        with pytest.raises(TypeError):
            metric.per_item()
