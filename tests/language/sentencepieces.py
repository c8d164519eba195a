"""Small SentencePiece models trained on the spot, texts of all kinds, and transformers' old tokenizer of Llama."""

from __future__ import annotations

import io
import json
import random
import re
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

BLANK = "\u2581"
SENTENCES = (
    "A chat between a curious human and an artificial intelligence assistant.",
    "The assistant gives helpful, detailed, and polite answers to the human's questions.",
    "What is the colour of the small red cube behind the blue sphere on the left?  There are 2 of them.",
    "def colour(cube):\n    if cube == 2:\n        return 'red'\n    return None\n",
    "Question: how many dogs are there in the picture? Short answer: 17",
    "USER: Describe the image concisely. ASSISTANT: A dog sits on a table, and it sees a cat.",
)
PIECES = (
    *"ae. ,!?\t\n0123456789<>/#*",
    *(
        "  ",
        "   ",
        "\n\n",
        "\r\n",
        "\n    ",
        "\n- ",
        "the",
        "The dog",
        "colour",
        "end.  Then",
        "3.14",
        "'s",
        "...",
        " - ",
    ),
    *(
        "def f(x):\n    return x\n",
        "\tif (a == b) {\n\t\tc++;\n\t}",
        '{"k": [1, 2]}',
        "https://x.y/z?q=1",
        "\\frac{1}{2}",
    ),
    *("\u4e2d\u6587\u5b57", "\u65e5\u672c\u8a9e", "\ud55c\uad6d\uc5b4", "\u041f\u0440\u0438\u0432\u0435\u0442"),
    *("\u0645\u0631\u062d\u0628\u0627", "\u0939\u093f\u0928\u094d\u0926\u0940", "e\u0301", "\u00e9", "z\u0335\u0300"),
    *("\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\ufb01", "\u2460", "\uff21"),
    *(
        "\u00a0",
        "\u3000",
        "\u200b",
        "\ufeff",
        "\u2028",
        "\x00",
        "\x07",
        "\ufdd0",
        "\uffff",
        "\U000e0041",
        BLANK,
        BLANK * 2,
    ),
    *("</s", "<s", "<unk", "[INST]", "s>"),
)


def texts(count: int, seed: int) -> list[str]:
    """Empty ones, double, leading and trailing blanks and long runs of them, code, other scripts, any characters."""
    rng = random.Random(seed)
    made = ["", " ", "  ", "\n", "\t\tx", BLANK, f"{BLANK}{BLANK} {BLANK}", "a", " a", "end.  Then", "</s>", "<s>a"]
    while len(made) < count:
        kind = rng.random()
        if kind < 0.1:
            made.append(" " * rng.randint(1, 40) + rng.choice(PIECES) + " " * rng.randint(0, 40) + rng.choice(PIECES))
        elif kind < 0.2:
            planes = ((32, 126), (1, 0xD7FF), (0xE000, 0x10FFFF))
            made.append("".join(chr(rng.randint(*rng.choice(planes))) for _ in range(rng.randint(1, 20))))
        elif kind < 0.3:
            made.append(rng.choice("aeo.-=*#_0\n\t") * rng.randint(1, 40) + rng.choice(PIECES))
        else:
            words = (rng.choice(PIECES) + rng.choice(["", "", " ", "  "]) for _ in range(rng.randint(1, 20)))
            made.append("".join(words))
    return made


def trained(**settings: Any) -> Any:
    """A model (`ModelProto`) with Llama's settings, unless told otherwise."""
    file = io.BytesIO()
    llama = {
        "model_type": "bpe",
        "vocab_size": 500,
        "byte_fallback": True,
        "add_dummy_prefix": True,
        "remove_extra_whitespaces": False,
        "normalization_rule_name": "identity",
        "split_digits": True,
        "allow_whitespace_only_pieces": True,
    }
    sentencepiece.SentencePieceTrainer.train(  # pyright: ignore[reportAttributeAccessIssue]
        sentence_iterator=iter(SENTENCES * 3), model_writer=file, num_threads=1, minloglevel=2, **(llama | settings)
    )
    model: Any = sentencepiece_model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    model.ParseFromString(file.getvalue())
    return model


@cache
def llama_bytes() -> bytes:
    """As Llama's model: among its pieces are the runs of 2 to 16 blanks, all of one score, the lowest."""
    model = trained()
    runs = {piece.piece: piece for piece in model.pieces if len(piece.piece) > 1 and set(piece.piece) == {BLANK}}
    for length in range(2, 17):
        piece = runs.get(BLANK * length) or model.pieces.add(piece=BLANK * length)
        piece.score = -1e9
    return model.SerializeToString()


def llama_model() -> Any:
    model: Any = sentencepiece_model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    model.ParseFromString(llama_bytes())
    return model


def vicuna_folder(folder: Path, settings: dict[str, Any] | None = None, model: Any = None) -> Path:
    """A folder with `tokenizer.model` and, if `settings` are given, tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(llama_bytes() if model is None else model.SerializeToString())
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def library(model: Any, **normalizer: bool) -> Any:
    """SentencePiece's own processor."""
    own = type(model)()
    own.CopyFrom(model)
    for name, value in normalizer.items():
        setattr(own.normalizer_spec, name, value)
    return sentencepiece.SentencePieceProcessor(model_proto=own.SerializeToString())


def old_tokenizer(model: Any, special: Collection[str], legacy: bool) -> Callable[[str], list[str]]:
    """The tokens of transformers 4's slow LlamaTokenizer, written after its description (tokenization_llama.py).

    Not legacy: the library puts no blank, the whole text has one in front, a chunk that begins with a blank is encoded
    behind the text `<unk>`, whose tokens are taken off again, and a blank alone before a special token goes.
    """
    own = library(model) if legacy else library(model, add_dummy_prefix=False)
    cut = re.compile("(" + "|".join(map(re.escape, sorted(special, key=len, reverse=True))) + ")")
    unknown = len(own.encode("<unk>", out_type=str))

    def tokens(text: str) -> list[str]:
        if not legacy and text:
            text = BLANK + text.replace(BLANK, " ")
        found: list[str] = []
        for part in cut.split(text):
            if part in special:
                found.append(part)
            elif legacy or not part.startswith((BLANK, " ")):
                found += own.encode(part, out_type=str)
            else:
                found += own.encode("<unk>" + part, out_type=str)[unknown:]
        return found[1:] if not legacy and found[:1] == [BLANK] and found[1:2] and found[1] in special else found

    return tokens
