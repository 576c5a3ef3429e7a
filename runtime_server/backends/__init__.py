"""The only place that imports ONNX Runtime."""

import os

# As packaged, it writes a device id into the user's home and may report to its maker; it asks when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
