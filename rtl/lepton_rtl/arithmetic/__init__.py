"""Float32 operations, functions and the products that they are made of."""
