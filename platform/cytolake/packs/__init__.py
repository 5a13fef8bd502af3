"""Packs: pixels of the crops that a curation keeps, shuffled once, and the order in which training reads them."""

from cytolake.packs.pack import Pack, PackError
from cytolake.packs.read_ahead import read_ahead
from cytolake.packs.sampler import GlobalMinibatch, minibatches, sample_order

__all__ = ["GlobalMinibatch", "Pack", "PackError", "minibatches", "read_ahead", "sample_order"]
