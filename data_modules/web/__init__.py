"""Pictures at public addresses: which addresses are public, one download, and a cache of what was downloaded."""
