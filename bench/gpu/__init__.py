"""What a card makes of a model: decoding against the bandwidth of its memory, a mixed load, and a peer."""
