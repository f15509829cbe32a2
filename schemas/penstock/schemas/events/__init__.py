"""Events and webhooks, incoming and outgoing, with their signatures and rules."""
