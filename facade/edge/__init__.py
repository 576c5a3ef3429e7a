"""gRPC at the edge: what the facade serves to internal services and to machines."""
