"""From what a training prints to step, loss, tokens per second and MFU. Pure: bytes and facts in, records out."""
