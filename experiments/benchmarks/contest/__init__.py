"""Trainers that take turns, step by step, each in a process of its own (`turns.py`)."""
