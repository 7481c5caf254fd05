"""Text to Megatron .bin/.idx token files and back: tokenise, merge, verify, inspect."""
