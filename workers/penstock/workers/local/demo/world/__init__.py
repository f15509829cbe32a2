"""The world around the demo: inputs, mail server, a partner's API."""
