"""From a Transformer's spec, or a Linear layer, to command lists."""
