"""Vision towers: pixels to visual vectors."""
