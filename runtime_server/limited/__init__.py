"""Work that may hang, crash or grow, in processes with limits."""
