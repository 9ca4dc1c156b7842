"""Models in other forms: ONNX, and an adapter merged into its base."""
