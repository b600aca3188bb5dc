"""What Remit costs as it grows, measured on this machine: the figures of ``docs/scale.md``."""
