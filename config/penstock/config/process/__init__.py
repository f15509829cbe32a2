"""A process seen from outside: the metrics that each has, and `penstock probe`. Importing this loads neither."""
