"""lmjax: from a network's posts to a language model, and from the model to products, in JAX."""

__version__ = '0.1.0'
