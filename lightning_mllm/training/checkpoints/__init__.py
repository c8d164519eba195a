"""Sharded checkpoints: a folder in which every rank writes the tensors that it owns, and which one rename publishes.

step-200/manifest.json                                 length and SHA-256 of each file; the last one that is written
step-200/state.pt                                      loops, callbacks, schedules, random states: plain values
step-200/shard-00001-model-00001-of-00001.safetensors  what rank 0 owns of the weights and the optimizer's moments

Tensors are called `weights.NAME`, `exp_avg.NAME`, `exp_avg_sq.NAME`, `average.0.NAME`. torch.distributed.checkpoint
writes and reads them; any number of ranks reads what any other number wrote, each rank only its own slices. Nothing is
unpickled but plain values (`weights_only`): the pickled metadata file of torch.distributed.checkpoint is not used.

Beside the folder of checkpoints, `checkpoints.json` says which step was written last. What is damaged, unfinished or
gone is told by name, and the newest whole checkpoint is used; without one a run that had some stops.
"""

from lightning_mllm.training.checkpoints.finding import newest
from lightning_mllm.training.checkpoints.manifest import MANIFEST, STATE, Values
from lightning_mllm.training.checkpoints.reading import SavedTensors, SavedWeights, read_state, restore
from lightning_mllm.training.checkpoints.sharded_io import ShardedCheckpointIO
from lightning_mllm.training.checkpoints.writing import TENSORS, WEIGHTS, Replaced

__all__ = [
    "MANIFEST",
    "STATE",
    "TENSORS",
    "WEIGHTS",
    "Replaced",
    "SavedTensors",
    "SavedWeights",
    "ShardedCheckpointIO",
    "Values",
    "newest",
    "read_state",
    "restore",
]
