"""The vector unit: float32 on rows of the vector memory."""
