"""Packs: the pixels that a curation kept, shuffled once, and the order in which training reads them."""

from cytolake.packs.pack import Pack, PackError
from cytolake.packs.sampler import minibatches, sample_order

__all__ = ["Pack", "PackError", "minibatches", "sample_order"]
