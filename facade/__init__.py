"""The facade: REST and SSE for OpenAI clients in front of a runtime."""
