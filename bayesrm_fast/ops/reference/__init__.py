"""The operations in plain torch, written to be read beside the formula."""
