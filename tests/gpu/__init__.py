"""What needs a card: `make test-gpu`."""
