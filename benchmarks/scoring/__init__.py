"""What rewards with uncertainty cost: `python -m benchmarks.scoring`, a module for the parts of each subject."""
