"""Instruction data written by a language model: requests, backends, the journal and the runner."""
