"""Requests and answers of the routes that have many."""
