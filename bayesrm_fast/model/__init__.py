"""A reward model as text goes into it and `(p, q, offsets)` come out of it."""
