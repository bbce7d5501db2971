"""Latency of an exported file in ONNX Runtime, against the frameworks and OpenVINO."""
