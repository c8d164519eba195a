from __future__ import annotations

import io
import random

import numpy as np
import torch

from lightning_mllm.training.callbacks.rng import RandomStates, read_state, write_state

CPU = torch.device("cpu")


def draw() -> tuple[float, ...]:
    return (
        float(torch.rand(())),
        float(torch.randn(())),
        np.random.rand(),
        np.random.randn(),
        random.random(),
        random.gauss(0, 1),
    )


def test_the_streams_go_on_where_they_were_read() -> None:
    draw()
    file = io.BytesIO()
    torch.save(read_state(CPU), file)
    expected = [draw() for _ in range(3)]
    file.seek(0)
    write_state(torch.load(file, weights_only=True), CPU)
    assert [draw() for _ in range(3)] == expected


def test_validation_is_hidden_from_training() -> None:
    states = RandomStates()
    torch.manual_seed(1)
    expected = draw()
    torch.manual_seed(1)
    np_state, py_state = np.random.get_state(), random.getstate()
    states.on_validation_start(None, None)  # pyright: ignore[reportArgumentType]
    draw()
    states.on_validation_end(None, None)  # pyright: ignore[reportArgumentType]
    assert draw()[:2] == expected[:2]
    np.random.set_state(np_state)
    random.setstate(py_state)
