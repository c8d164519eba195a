"""What watches a stage from outside: random states, checkpoints, the record, the metrics table, the progress bar."""
