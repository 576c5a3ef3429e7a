"""The only place that imports ONNX Runtime."""
