"""The gRPC services of a runtime server: translation only."""
