"""CogVLM: folders in the names and the configuration of the public checkpoints, with code of ours for transformers.

keys.py   names of tensors          tower.py   `vision_config`          folder.py   all else          remote/   the code
"""

from lightning_mllm.interop.cogvlm.folder import read, write
from lightning_mllm.interop.cogvlm.keys import KEYS
from lightning_mllm.interop.format import Format

FORMAT = Format(
    architecture="lightning_mllm.architectures.cogvlm.CogVLM",
    keys=KEYS,
    hf_class="CogVLMForCausalLM",
    write=write,
    read=read,
)
