"""Answers and what they are worth: generation, scores with intervals and blind baselines, reports."""
