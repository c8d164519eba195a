"""A model behind OpenAI's HTTP interface, and a page to talk with it: what `mllm serve` runs."""
