"""Published scores in pure Python, one file each."""

from lightning_mllm.evaluation.metrics.anls import Anls
from lightning_mllm.evaluation.metrics.answer_words import AnswerWords
from lightning_mllm.evaluation.metrics.bleu import Bleu
from lightning_mllm.evaluation.metrics.box_accuracy import BoxAccuracy
from lightning_mllm.evaluation.metrics.choice_letter import MmBenchScores, SeedBenchAccuracy
from lightning_mllm.evaluation.metrics.cider import CiderD
from lightning_mllm.evaluation.metrics.detection import DetectionScores
from lightning_mllm.evaluation.metrics.exact_match import ExactMatch, SphinxExactMatch
from lightning_mllm.evaluation.metrics.ivqa_accuracy import IvqaAccuracy
from lightning_mllm.evaluation.metrics.mme import MmeScores
from lightning_mllm.evaluation.metrics.perplexity import DocumentLoss, Loss, Perplexity
from lightning_mllm.evaluation.metrics.pope import PopeScores
from lightning_mllm.evaluation.metrics.ranking import Choice, Ranking, RankMetric, ReciprocalRank, RocAuc
from lightning_mllm.evaluation.metrics.relaxed_accuracy import RelaxedAccuracy
from lightning_mllm.evaluation.metrics.rouge import RougeL
from lightning_mllm.evaluation.metrics.text import Asked, SampleMetric, TextMetric
from lightning_mllm.evaluation.metrics.vqa_accuracy import OfficialVqaAccuracy, VqaAccuracy

__all__ = [
    "Anls",
    "AnswerWords",
    "Asked",
    "Bleu",
    "BoxAccuracy",
    "Choice",
    "CiderD",
    "DetectionScores",
    "DocumentLoss",
    "ExactMatch",
    "IvqaAccuracy",
    "Loss",
    "MmBenchScores",
    "MmeScores",
    "OfficialVqaAccuracy",
    "Perplexity",
    "PopeScores",
    "RankMetric",
    "Ranking",
    "ReciprocalRank",
    "RelaxedAccuracy",
    "RocAuc",
    "RougeL",
    "SampleMetric",
    "SeedBenchAccuracy",
    "SphinxExactMatch",
    "TextMetric",
    "VqaAccuracy",
]
