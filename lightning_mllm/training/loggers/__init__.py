"""Where the curves, pictures and scores of a stage go beside `metrics.csv`."""
