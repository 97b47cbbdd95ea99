"""A participant: its model, what leaves it, what can be wrong with it. No messages, no engine."""
