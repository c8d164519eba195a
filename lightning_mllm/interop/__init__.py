"""All that is known of outside formats, one file (or package) each.

    hf_llava.py  hf_blip2.py  hf_blip2_retrieval.py  hf_instructblip.py     folders that transformers loads
    hf_language_model.py                                                    a language model alone
    cogvlm/                                                                 folders of CogVLM, with remote code of ours
    llava_original.py  lavis.py  llama2_accessory.py  open_clip.py          the authors' own checkpoints

What they share: `format.py` (what a format is, and how all are found), `folder.py`, `tokenizer.py`, `chat_template.py`,
`hf_components.py`, `hf_blip.py` (pieces of folders) and `keys/`: names of towers, Q-Formers and Llama's blocks, tables
alone, by which `vision/` and `connectors/` read their own weights too.

To add a format of the checkpoints of an architecture, add one file here that defines a `Format`; no list names it:

    KEYS = KeyMap([("connector.{...}", "projector.{...}"), ("language.{...}", "lm.{...}")])   # ours <-> theirs, total
    FORMAT = Format(architecture="lightning_mllm.architectures.llava.LLaVA", keys=KEYS)

From then on `stage.init_from` and `mllm mix` take files with these names. For a folder that transformers loads, add
`hf_class`, `write` (a net -> `HfFolder`: configuration, processor, generation, tensors) and `read` (a folder -> the
arguments of the architecture): `mllm export`, `mllm ask` and `load` then write and read it, and no export is given out
that transformers does not answer as our net does. Tests: names there and back bit for bit on the architecture's
`tiny()`, and logits and greedy answers against the other implementation (tests/interop).
"""
