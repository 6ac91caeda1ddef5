"""The frozen vision transformer, its LoRA adapters, and how both compute."""
