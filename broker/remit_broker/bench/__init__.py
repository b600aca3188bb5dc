"""What a governed hop costs beside a direct call: three ways, measured interleaved in one run on this machine."""
