"""`mllm ask RUN --image F "question"`, and `mllm ask RUN --chat`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_mllm.commands.arguments import Arguments
from lightning_mllm.commands.config import ConfigError
from lightning_mllm.commands.model import RUN, add_options, load_given

if TYPE_CHECKING:
    from lightning_mllm.inference.conversation import Conversation

CHAT = "Lines are questions; /image PATH adds a picture to the next one, /new starts anew, the end of input leaves."


def main(arguments: Sequence[str]) -> None:
    """Print the answer of a trained model, or those of a conversation."""
    parser = Arguments("ask", description="Ask a trained model, about pictures or without.")
    parser.add_argument("model", metavar="RUN", help=RUN)
    parser.add_argument("question", nargs="?", help="what to ask; in quotes")
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        type=Path,
        metavar="F",
        help="a JPEG, PNG, WebP, GIF, BMP or TIFF; may be said several times, for pictures that follow one another",
    )
    parser.add_argument("--chat", action="store_true", help="a conversation: questions from the input, line by line")
    add_options(parser)
    given = parser.parse_intermixed_args(arguments)
    if given.question is None and not given.chat:
        raise ConfigError('ask: found no question, expected one, as in: mllm ask RUN --image F "What is it?"')
    for each in given.image:
        _check_picture(each)
    model = load_given(given.model, given)
    if not given.chat:
        print(model.answer(given.image, str(given.question)))
        return
    lines = _lines() if given.question is None else iter([given.question, *_lines()])
    _chat(model.conversation(), given.image, lines)


def _chat(talk: Conversation, images: list[Path], lines: Iterator[str]) -> None:
    """Answers each line as it is written; what is wrong with one is told, and the conversation goes on."""
    for line in lines:
        command, _, rest = line.strip().partition(" ")
        try:
            if command == "/image":
                _check_picture(path := Path(rest.strip()).expanduser())
                images = [*images, path]
            elif command == "/new":
                talk, images = type(talk)(talk.reply), []
            elif command.startswith("/"):
                raise ValueError(f"found {command}, expected a question, /image PATH or /new")
            elif command:
                _tell(talk, line.strip(), images)
                images = []
        except ValueError as error:
            print(f"mllm: {' '.join(str(error).split())}", file=sys.stderr)


def _tell(talk: Conversation, question: str, images: list[Path]) -> None:
    """Prints an answer piece by piece; on a terminal an interrupt stops the answer alone."""
    pieces = talk.stream(question, images)
    with closing(pieces):
        try:
            for piece in pieces:
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
    print(flush=True)


def _lines() -> Iterator[str]:
    """Of a terminal with its own editing, or of a pipe."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    import readline  # noqa: F401  (`input` edits lines by it)

    print(CHAT)
    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return


def _check_picture(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"--image: found no file {path}, expected a picture")
