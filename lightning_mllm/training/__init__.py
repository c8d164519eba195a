"""Stages of training: freezing, initialisation, sharding, the shared LightningModule and its callbacks."""
