"""Conversations: their messages, the bounded rendering of chat templates, and where the trained text lies."""
