"""A method, a network and a data set for hkd."""

from outside import data, method, network

__all__ = ["data", "method", "network"]
