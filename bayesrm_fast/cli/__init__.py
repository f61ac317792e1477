"""The command `bayesrm`."""
