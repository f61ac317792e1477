"""Text to rows of token ids, and batches of them."""
