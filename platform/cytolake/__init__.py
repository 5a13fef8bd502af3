"""cytolake: from raw high-content microscopy screens to a chosen, served representation, on Ray."""

__version__ = "0.1.0"
