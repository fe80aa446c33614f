"""kvnode: a key-value store for the configuration and state of other systems."""

__version__ = "0.1.0"
