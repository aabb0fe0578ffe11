"""The environments: one file or one small folder each."""
