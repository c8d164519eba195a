"""Published scores of written answers in pure Python, one file each."""

from lightning_mllm.evaluation.metrics.bleu import Bleu
from lightning_mllm.evaluation.metrics.cider import CiderD
from lightning_mllm.evaluation.metrics.exact_match import ExactMatch
from lightning_mllm.evaluation.metrics.pope import PopeScores
from lightning_mllm.evaluation.metrics.rouge import RougeL
from lightning_mllm.evaluation.metrics.text import TextMetric
from lightning_mllm.evaluation.metrics.vqa_accuracy import VqaAccuracy

__all__ = ["Bleu", "CiderD", "ExactMatch", "PopeScores", "RougeL", "TextMetric", "VqaAccuracy"]
