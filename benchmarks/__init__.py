"""One command for each benchmark."""
