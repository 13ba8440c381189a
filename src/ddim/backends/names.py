"""What back ends are called. No torch here."""

__all__ = ["BACKENDS"]

BACKENDS = ("auto", "torch", "ncnn", "openvino", "cuda-graph", "compile")
