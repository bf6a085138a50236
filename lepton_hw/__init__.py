"""The contract: what the hardware is, to every other part. numpy only."""
