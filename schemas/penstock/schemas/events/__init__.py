"""Events and webhooks as they come in and go out, with their signatures and rules."""
