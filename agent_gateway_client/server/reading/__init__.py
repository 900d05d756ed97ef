"""Reads the facts of a call from the bodies of its request and response. No text of a model or a user is kept."""
