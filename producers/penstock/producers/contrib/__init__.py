"""One small module for each web framework. Each needs its framework, and nothing that the framework does not."""
