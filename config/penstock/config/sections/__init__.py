"""The sections of `penstock.toml`, a module each."""
