"""One file for each architecture; none imports another."""
