"""Connectors: visual vectors of a tower to vectors of a language model."""
