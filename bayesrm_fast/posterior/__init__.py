"""From `(p, q, offsets)` to variances and covariances."""
