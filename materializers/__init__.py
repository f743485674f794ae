"""ZenML materializers: one artifact type a file; safetensors, Arrow, JSON; never pickle."""
