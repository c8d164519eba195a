from __future__ import annotations

import io
import json
import random
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from data_modules.loader import ResumableLoader, Share
from data_modules.mixture_sampler import MixtureSampler, SampleLocation
from data_modules.sources import Source, WebCaptions
from tests.data_modules.containers.test_opening import tar
from tests.data_modules.files import generator

PARTS = Path(__file__).resolve().parents[3] / "experiments/_parts"


def picture(number: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (number % 256, 30, 30)).save(stream, "JPEG")
    return stream.getvalue()


def shard(folder: Path, first: int, count: int, captions: Any = None) -> Path:
    """As img2dataset writes it."""
    members: dict[str, bytes] = {}
    for number in range(first, first + count):
        key = f"{number:09}"
        told = {"caption": captions or f"Photo {number}.", "url": "http://x", "key": key, "status": "success"}
        members |= {f"{key}.jpg": picture(number), f"{key}.txt": b"Alt.", f"{key}.json": json.dumps(told).encode()}
    folder.mkdir(parents=True, exist_ok=True)
    return tar(folder, members, f"{first // 100:05}.tar")


def loaded(annotations: str, **settings: Any) -> WebCaptions:
    source = WebCaptions(annotations, prompt="<image>", **settings)
    source.load()
    return source


def test_a_sample_is_a_picture_in_a_shard_and_its_caption(tmp_path: Path) -> None:
    shard(tmp_path, 0, 3)
    shard(tmp_path, 100, 2)
    source = loaded(f"{tmp_path}/*.tar")
    assert len(source) == 5 and source.runs().tolist() == [3, 2] and source.captions
    sample = source.sample(4, generator())
    assert sample.id == "000000101" and [turn.text for turn in sample.turns] == ["<image>", "Photo 101."]
    assert sample.images[0].name == f"{tmp_path}/00001.tar:000000101.jpg"
    assert sample.images[0].read(9999) == picture(101)
    assert source.where(4) == f"{tmp_path}/00001.tar: 000000101"
    assert source.length(4) == 3 and source.has_image(4)


def test_a_caption_may_be_a_text_alone_or_one_of_several(tmp_path: Path) -> None:
    path = tar(tmp_path, {"1.png": b"p", "1.txt": b"Alt."})
    assert loaded(str(path)).sample(0, generator()).turns[1].text == "Alt."
    source = loaded(str(shard(tmp_path, 0, 1, ["best", "second", "third"])), top=2)
    drawn = Counter(source.sample(0, generator(seed)).turns[1].text for seed in range(200))
    assert set(drawn) == {"best", "second"} and 60 < drawn["best"] < 140


def test_bad_records_and_cut_shards_are_left_out_or_refused(tmp_path: Path) -> None:
    bad = {"status": "failed_to_download", "caption": "x"}
    members = {"1.jpg": b"p", "1.json": json.dumps(bad).encode(), "2.json": b'{"caption": "x"}', "3.jpg": b"p"}
    path = tar(tmp_path, members)
    with pytest.raises(ValueError, match=r"rows.tar: 1 \(image 1.jpg\): 'status' is 'failed_to_download', expected"):
        loaded(str(path))
    whole = shard(tmp_path, 0, 4)
    with tarfile.open(whole) as archive:
        last = archive.getmember("000000003.json").offset_data
    whole.write_bytes(whole.read_bytes()[: last + 10])
    source = loaded(f"{tmp_path}/*.tar", bad_records="skip")
    assert [source.sample(k, generator()).id for k in range(len(source))] == ["000000000", "000000001", "000000002"]
    found = "\n".join(source.skipped)
    assert len(source.skipped) == 4 and "00000.tar: found a tar" in found
    assert "rows.tar: 2: has no 'image'" in found and "3 (image 3.jpg): has no 'caption'" in found


class Read(Dataset[Any]):
    """Ids and pixels of samples."""

    def __init__(self, sources: dict[str, Source]) -> None:
        self.sources = sources

    def __getitem__(self, location: SampleLocation) -> Any:
        sample = self.sources[location.source].sample(location.index, generator())
        return location.source, sample.id, sample.turns[1].text, *(image.read(9999) for image in sample.images)


@pytest.mark.parametrize("group", ["none", "shard"])
def test_a_streamed_mixture_goes_on_anywhere_on_any_ranks_and_workers(tmp_path: Path, group: Any) -> None:
    sources: dict[str, Source] = {}
    for name, sizes in {"laion": (7, 5, 9, 3), "coyo": (6, 10)}.items():
        for k, size in enumerate(sizes):
            shard(tmp_path / name, 100 * k, size)
        sources[name] = loaded(f"{tmp_path}/{name}/*.tar")
    sizes = {name: len(source) for name, source in sources.items()}

    def loader(rank: int = 0, world: int = 1, workers: int = 0, position: int = 0) -> ResumableLoader:
        order = MixtureSampler(sizes, seed=2, group=group, batch=4, runs=lambda name: sources[name].runs())
        share = Share("stage.global_batch", 4, 4 // world)
        settings = {"collate_fn": list, "steps": 20, "rank": rank, "world": world, "workers": workers}
        made = ResumableLoader(Read(sources), [(share, order)], **settings)  # pyright: ignore[reportArgumentType]
        made.load_state_dict({"position": position})
        return made

    stream = [row for batch in loader() for row in batch]
    assert len(stream) == 80 == 2 * sum(sizes.values())
    for epoch in (stream[:40], stream[40:]):
        assert len({row[:2] for row in epoch}) == 40  # none twice, none lost
    stopped = loader()
    batches = iter(stopped)
    for _ in range(random.Random(1).randrange(1, 20)):
        next(batches)
    state = stopped.state_dict()
    assert list(state.values()) == [int(state["position"])]
    rest = stream[state["position"] :]
    assert [row for batch in loader(workers=1, position=state["position"]) for row in batch] == rest
    ranks = [[row for batch in loader(rank, 2, position=state["position"]) for row in batch] for rank in range(2)]
    joined = [row for k in range(0, len(rest) // 2, 2) for rank in ranks for row in rank[k : k + 2]]
    assert joined == rest


@pytest.mark.parametrize("part", ["blip2_laion", "cogvlm_laion", "cogvlm_coyo"])
def test_the_part_of_a_recipe_trains_on_shards(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_mllm.cli import main
    from tests.commands.conftest import TOY

    monkeypatch.chdir(tmp_path)
    folder = {"blip2_laion": "laion", "cogvlm_laion": "laion_2b", "cogvlm_coyo": "coyo_700m"}[part]
    shard(tmp_path / "data" / folder, 0, 3, ["A red square.", "A square.", "x"] if part == "blip2_laion" else None)
    shard(tmp_path / "data" / folder, 100, 3)
    (tmp_path / "own.yaml").write_text(
        f"extends: {TOY}\ndata: {{init_args: {{train: {{web: {PARTS / part}.yaml}}}}}}\n"
    )
    steps = ["--stage.steps=2", "--stage.global_batch=2", "--hardware.micro_batch=2", "--data.test=null"]
    main(["fit", "--config=own.yaml", "--run_dir=run", "--trainer.enable_progress_bar=false", *steps])
    weights = list((tmp_path / "run").rglob("*.safetensors"))
    assert weights and torch.isfinite(torch.tensor(weights[0].stat().st_size))
