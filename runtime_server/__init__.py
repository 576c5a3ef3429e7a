"""The process that runs models on one machine."""
