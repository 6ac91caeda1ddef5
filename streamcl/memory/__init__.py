"""The memory of past samples: hard and reservoir buffers, importance of parameters."""
