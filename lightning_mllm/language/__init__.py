"""Language models: transformers' causal LMs, what is put into their embeddings, their loss and their adapters."""
