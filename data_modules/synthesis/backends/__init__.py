"""Who answers requests: an OpenAI-compatible endpoint, OpenAI batch files, rules."""
