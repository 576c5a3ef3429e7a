"""From what an output must match to the tokens that may come next."""
