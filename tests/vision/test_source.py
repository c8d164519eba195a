from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from lightning_mllm.vision.source import OpenClipSource
from lightning_mllm.weights.files import TensorFiles
from tests.vision.models import CONFIG, MEAN, STD, write_folder


def test_a_folder_of_open_clip_is_read_whole(tmp_path: Path) -> None:
    net = write_folder(tmp_path)
    source = OpenClipSource(str(tmp_path), "", None)
    assert source.model_config() == CONFIG and source.statistics() == (MEAN, STD)
    found = dict(source.tensors() or ())
    assert found.keys() == net.state_dict().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in net.state_dict().items())


def test_weights_may_lie_elsewhere_and_be_wrapped(tmp_path: Path) -> None:
    file = tmp_path / "elsewhere.safetensors"
    save_file({"module.visual.proj": torch.ones(2)}, file)
    assert list(dict(OpenClipSource("ViT-B-32", str(file), None).tensors() or ())) == ["visual.proj"]


def test_what_is_not_asked_for_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path)
    read: list[str] = []
    own = TensorFiles.__getitem__
    monkeypatch.setattr(TensorFiles, "__getitem__", lambda self, name: read.append(name) or own(self, name))
    found = [name for name, _ in OpenClipSource(str(tmp_path), "", None).tensors("visual.") or ()]
    assert found == read and found and all(name.startswith("visual.") for name in found)


def test_fresh_has_no_tensors() -> None:
    source = OpenClipSource("", None, CONFIG)
    assert source.tensors() is None
    assert source.statistics()[0] == open_clip.OPENAI_DATASET_MEAN


@pytest.mark.parametrize(
    ("model", "weights", "sentence"),
    [
        ("ViT-L-14-336-quickgel", None, "the nearest is 'ViT-L-14-336-quickgelu'"),
        ("package:backbones/none", None, "expected a file or folder of the package"),
        ("ViT-L-14-336", "", "has no weights of its own"),
        ("ViT-L-14-336", "laion", "'laion', which is no file, expected one or a tag of open_clip .openai."),
        ("ViT-L-14-336", "openai", "expected the model name with the ending -quickgelu"),
    ],
)
def test_sources_that_cannot_be_had(model: str, weights: str | None, sentence: str) -> None:
    source = OpenClipSource(model, weights, None)
    with pytest.raises(ValueError, match=sentence):
        source.model_config()
        source.tensors()


def test_weights_that_cannot_be_downloaded_are_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(config: dict) -> str:
        raise RuntimeError("Failed to download file\nmore")

    monkeypatch.setattr("lightning_mllm.vision.source.download_pretrained", offline)
    with pytest.raises(ValueError, match=r"weights 'openai': cannot be downloaded \(Failed to download file\)$"):
        OpenClipSource("ViT-L-14-quickgelu", "openai", None).tensors()


def test_folders_that_are_not_whole(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a folder with open_clip_config"):
        OpenClipSource(str(tmp_path), "", None).read()
    (tmp_path / "open_clip_config.json").write_text("{")
    with pytest.raises(ValueError, match="found no JSON"):
        OpenClipSource(str(tmp_path), "", None).read()
    (tmp_path / "open_clip_config.json").write_text("[]")
    with pytest.raises(ValueError, match="found a list"):
        OpenClipSource(str(tmp_path), "", None).read()
    with pytest.raises(ValueError, match=r"found no open_clip_model\.safetensors"):
        OpenClipSource(str(tmp_path), "", None).tensors()
