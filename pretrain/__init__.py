"""Dynamic pre-training: one network learns at every depth at once to undo noise, JPEG and masking."""
