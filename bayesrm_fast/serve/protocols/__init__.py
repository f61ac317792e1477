"""What trainers and inference servers' clients already speak, a router for each."""
