"""Names of building blocks in files of others: tables alone, by which building blocks read their own weights too."""
