"""Integrations: a small module per web framework, with no dependencies but the framework's."""
