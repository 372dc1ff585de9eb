"""Network cards that real machines have."""
