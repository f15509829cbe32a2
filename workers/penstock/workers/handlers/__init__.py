"""The author's side: handlers, context, return values, resources."""
