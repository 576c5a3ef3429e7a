"""The addresses of the REST API, one module each."""
