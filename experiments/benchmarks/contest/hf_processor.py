"""The samples of a workload as images and texts, and the processor of transformers that makes its tokens of them.

Texts are words whose numbers are the tokens, so that who trains on texts trains on the same rows as the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

from contest.workload import BEGIN, END, PAD, PATCH, STATISTICS, Workload


def words(workload: Workload) -> list[str]:
    """By token."""
    named = {PAD: "<pad>", BEGIN: "<s>", END: "</s>", workload.image_token: "<image>"}
    return [named.get(token, f"w{token}") for token in range(workload.sizes.vocabulary)]


def processor_of(workload: Workload) -> LlavaProcessor:
    """Images have the size of the tower already."""
    said = words(workload)
    tokenizer = Tokenizer(WordLevel({word: token for token, word in enumerate(said)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "additional_special_tokens": ["<image>"]}
    mean, std = STATISTICS
    return LlavaProcessor(
        CLIPImageProcessor(do_resize=False, do_center_crop=False, do_convert_rgb=False, image_mean=mean, image_std=std),
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        # The class vector, which that strategy drops.
        num_additional_image_tokens=1,
    )


def rows_of(workload: Workload) -> Dataset:
    """The samples of a workload as prompts, completions and images."""
    said = words(workload)

    def read(asked: Mapping[str, Sequence[int]]) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {"prompt": [], "completion": [], "images": []}
        for number in asked["number"]:
            one = workload.sample(number)
            learned = int((one.labels >= 0).sum())
            tokens = one.tokens.tolist()
            # The processor repeats an image's word, once for each of its vectors.
            prompt = [token for token in tokens[:-learned] if token != workload.image_token]
            prompt[1:1] = [workload.image_token] * len(one.images)
            found["prompt"].append(" ".join(said[token] for token in prompt))
            found["completion"].append(" ".join(said[token] for token in tokens[-learned:]))
            found["images"].append(list(one.images))
        return found

    count = workload.batch * (workload.all_steps + 1)
    return Dataset.from_dict({"number": list(range(count))}).with_transform(read)
