"""Attention over the paged KV cache: one small interface, several backends."""
